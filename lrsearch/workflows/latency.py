"""Latency tables: measured here, or on another machine through files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.errors import ConfigError, LatencyError
from lrsearch.latency import remote
from lrsearch.latency.backends import backend
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import DENSE, LatencyTable
from lrsearch.latency.whole_models import Menus
from lrsearch.spec.config import LatencyConfig, StudyConfig
from lrsearch.spec.progress import Progress
from lrsearch.study.latency import measured
from lrsearch.study.surroundings import surroundings
from lrsearch.task.examples import Data
from lrsearch.workflows.layers import found_layers
from lrsearch.workflows.materials import Materials, Study, model_or_study, settings_of


@dataclass(frozen=True)
class Measured:
    """A table that was made.

    Attributes:
        table: also at ``path``.
        forms: how many forms of layers were timed.
        faster: how many of them take less than the dense layer.
        path: the file.
        dense: ``float32`` and ``int8`` → milliseconds of the dense model, beside each other; empty where the backend reads no ONNX, or
            the table is of another machine.
    """

    table: LatencyTable
    forms: int
    faster: int
    path: Path
    dense: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the conditions, and what the table comes to."""
        t = self.table
        return {
            "conditions": vars(t.conditions), "dense_ms": t.dense.ms, "layers": len(t.entries), "forms": self.forms, "faster": self.faster,
            "scale": t.scale, "stray": t.stray, "table": str(self.path), "dense_ms_in": dict(self.dense),
        }


@dataclass(frozen=True)
class Packed:
    """What another machine is to time.

    Attributes:
        models: how many.
        bytes: of the models.
        folder: where they are.
    """

    models: int
    bytes: int
    folder: Path


@surroundings()
def measure(
    model: nn.Module | Study, calibration: Data | None = None, *, out: str | Path | None = None, progress: Progress | None = None,
    **settings: Any,
) -> Measured:
    """Measure on this machine how long every choice of every layer takes.

    Args:
        model: the dense model, which is not changed; or a study file.
        calibration: (input, label) pairs, of which two inputs are used.
        out: the table; ``NAME-latency.json`` by default.
        progress: told of every session.
        **settings: keys of a study file, such as ``latency={"backend": "onnxruntime", "threads": 1, "batch": 1}`` and ``space``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.latency.measure(model, (x, y), latency={"backend": "onnxruntime"}, out="here.json").table.dense_ms
    """
    config, network = _config(model, settings)
    backend(_settings(config).backend)  # before any work
    told = progress or Progress()
    path = Path(out or f"{config.name}-latency.json")
    _refuse_other_file(path)
    survey, menus = _survey(config, network, calibration)
    table = measured(survey, menus, _settings(config), None, told, config.deploy.precision)
    dense = survey.dense_in_each(table.conditions, told.stage, told.advance)
    return replace(_saved(table, survey, path), dense={name: timing.ms for name, timing in dense.items()})


@surroundings()
def pack(
    model: nn.Module | Study, calibration: Data | None = None, *, out: str | Path, progress: Progress | None = None, **settings: Any,
) -> Packed:
    """Write what another machine is to time, and the program that does it there; arguments as for :func:`measure`.

    Args:
        out: the folder.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    config, network = _config(model, settings)
    (survey, _), chosen, folder, told = _survey(config, network, calibration), _settings(config), Path(out), progress or Progress()
    if chosen.backend != remote.BACKEND:
        raise ConfigError("elsewhere, ONNX Runtime alone can be timed", value=chosen.backend, place="latency.backend",
                          remedy=f"Set it to {remote.BACKEND}.")
    told.stage("Packing", len(survey.jobs) + 1)
    remote.pack(survey, folder, chosen.threads, told.advance, config.deploy.precision)
    return Packed(len(survey.jobs) + 1, sum(p.stat().st_size for p in folder.rglob("*.onnx")), folder)


@surroundings()
def ingest(
    model: nn.Module | Study, calibration: Data | None = None, *, folder: str | Path, out: str | Path, **settings: Any,
) -> Measured:
    """Make the table of what came back from another machine; arguments as for :func:`measure`.

    Args:
        folder: where ``times.json`` is.
        out: the table.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.
    """
    config, network = _config(model, settings)
    _refuse_other_file(Path(out))
    survey, _ = _survey(config, network, calibration)
    return _saved(remote.ingest(survey, Path(folder), _settings(config).threads, config.deploy.precision), survey, Path(out))


def _config(model: nn.Module | Study, settings: dict[str, Any]) -> tuple[StudyConfig, nn.Module | None]:
    network, study = model_or_study(model)
    return settings_of(study, settings, "lrsearch.latency"), network


def _settings(config: StudyConfig) -> LatencyConfig:
    return config.latency or LatencyConfig()


def _survey(config: StudyConfig, model: nn.Module | None, calibration: Data | None) -> tuple[Survey, Menus]:
    found = found_layers(Materials.of(model, config, "calibration", calibration=calibration))
    survey = Survey.of(found.model, found.layers, found.menus, found.sample, _settings(config).batch)
    return survey, found.menus


def _refuse_other_file(path: Path) -> None:
    """Check that nothing but a latency table is replaced."""
    if path.exists():
        try:
            LatencyTable.load(path)
        except LatencyError as error:
            rule, remedy = "only a latency table may be replaced", "Give another --out."
            raise LatencyError(rule, value=error.value, place=str(path), remedy=remedy) from None


def _saved(table: LatencyTable, survey: Survey, path: Path) -> Measured:
    table.save(path)
    faster = sum(table.alone([job.signature], job.key) < table.alone([job.signature], DENSE) for job in survey.jobs)
    return Measured(table, len(survey.jobs), faster, path)
