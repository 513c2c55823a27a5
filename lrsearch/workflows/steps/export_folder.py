"""A member of a study's front → a folder to ship: weights, plan, ONNX, and where it comes from."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from torch import Tensor, nn

from lrsearch.compress import artifact
from lrsearch.deploy.apart import ApartError
from lrsearch.deploy.deployed import deployed_of
from lrsearch.deploy.onnx_export import exported
from lrsearch.errors import ArtifactError, LatencyError, LrsearchError, StudyError
from lrsearch.latency.backends import backend
from lrsearch.latency.table import LatencyTable
from lrsearch.report.certificate import CERTIFICATE, CERTIFICATE_TABLE, ONNX, Certificate, Origin
from lrsearch.report.frame import front_frame, study_frame
from lrsearch.report.model_card import CARD, model_card
from lrsearch.spec.atomic import read_json
from lrsearch.spec.config import LatencyConfig, StudyConfig
from lrsearch.spec.progress import Progress
from lrsearch.spec.registry import loaded_plugins
from lrsearch.study.identity import read_inputs, refuse_other_study
from lrsearch.study.recovered import read_finished
from lrsearch.study.study_folder import StudyFolder
from lrsearch.task.data import Examples
from lrsearch.task.forward import Inputs, batches_of
from lrsearch.task.memory import BatchSize
from lrsearch.task.sample import describe
from lrsearch.task.scoring import Reference
from lrsearch.workflows.steps.lowering import AT_ONCE, Lowering, compared
from lrsearch.workflows.steps.verify_folder import digest

_SCRATCH, _LOCK = ".exporting-", ".lock"


def read_front(study: Path, config: StudyConfig) -> pd.DataFrame:
    """The front of the study in ``study``, from its trials.

    Raises:
        StudyError: there is no finished one, or it is not the study of ``config``.
    """
    refuse_other_study(StudyFolder(study), config)
    found = read_finished(StudyFolder(study))
    trials = study_frame(
        found.records, found.recovered, found.dense, found.baseline, config.objectives, found.over, found.measured, found.chance,
    )
    return front_frame(trials, config.objectives, study)


def origin_of(study: Path, config: StudyConfig, base: nn.Module, sample: Tensor) -> Origin:
    """What all models of a study have in common."""
    inputs = read_inputs(StudyFolder(study))
    cpu = ""
    if config.latency:
        try:
            cpu = LatencyTable.load(StudyFolder(study).latency).conditions.cpu
        except LatencyError as error:
            raise StudyError(error.rule, value=error.value, place=error.place, remedy="Run the search again.") from None
    return Origin(config, {}, digest(base), inputs["data"]["score"], describe(sample), cpu=cpu)


def write_folder(
    source: Path, out: Path, base: nn.Module, sample: Tensor, origin: Origin, lowering: Lowering = Lowering(),  # noqa: B008  frozen
    scoring: Examples | None = None,
) -> dict[str, str]:
    """Copy the saved model in ``source`` to ``out`` and write its ONNX form, if that can be made here.

    Returns:
        Why it was not made, as ``onnx``; empty if it was.

    Args:
        base: the dense model.
        sample: two inputs.
        origin: kept, with the digests of the files, in a certificate without checks.
        lowering: makes the ONNX form of what the exporter writes.
        scoring: the score data, on which a form of lower precision is scored.

    Raises:
        ArtifactError: the saved model is missing or damaged.
    """
    model = artifact.load(source, base).cpu()  # where it is deployed
    out.mkdir(parents=True)
    for name in (artifact.PLAN, artifact.WEIGHTS):
        shutil.copyfile(source / name, out / name)
    unmade, (_, about) = {}, artifact.read_plan(source)
    try:
        whole = onnx_form(model, sample, origin.config.latency, about.get("merged", ()), lowering)
        scored = _scored(whole, model, lowering, scoring)
    except Exception as error:  # of a model that is as good without
        unmade["onnx"] = f"not made, because {error if isinstance(error, LrsearchError) else f'{type(error).__name__}: {error}'}"
    else:
        (out / ONNX).write_bytes(whole)
        origin = replace(origin, scored=scored)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}
    Certificate(replace(origin, files=files), unchecked=unmade).save(out)
    return unmade


def _scored(whole: bytes, model: nn.Module, lowering: Lowering, scoring: Examples | None) -> dict[str, float]:
    """What the file itself scores, where it is in lower precision than ``model``."""
    if lowering.precision == "float32" or scoring is None or lowering.base is None or lowering.task is None:
        return {}
    reference = Reference(lowering.task, lowering.base, scoring, BatchSize(AT_ONCE))
    found = compared(reference, whole, model).score(0, False, ONNX)
    return {"divergence": found.divergence} | ({} if found.metric is None else {"metric": found.metric})


def onnx_form(
    model: nn.Module, sample: Inputs, latency: LatencyConfig | None, merged: Any = (), lowering: Lowering = Lowering(),  # noqa: B008
) -> bytes:
    """``model`` deployed, as ONNX: for the batch that the study times, else for any.

    Raises:
        ConfigError: the exporter is not installed, or there are no calibration data.
        ArtifactError: torch cannot export the model, or ends its process when it tries.
    """
    backend("onnxruntime")
    x = batches_of(sample, latency.batch if latency else 2)
    small, layers = deployed_of(model, x, merged)
    try:
        whole = exported(small, x, dynamic=latency is None)
    except Exception as error:
        said = str(error) if isinstance(error, ApartError) else f"{type(error).__name__}: {error}"
        raise ArtifactError(
            "torch must be able to export the model to ONNX", value=said.strip().splitlines()[0], place=ONNX,
            remedy="weights.safetensors does without.",
        ) from error
    return lowering(whole, model, layers, latency.batch if latency else None)


def certified(folder: Path, config: StudyConfig) -> Certificate:
    """The certificate of an exported folder, made by a fresh process that is given the folder and the study.

    Args:
        folder: verified; its certificate is replaced.
        config: of the study; says which code builds the model, reads the data and computes the metric.

    Raises:
        ArtifactError: the process could not make it.
    """
    with tempfile.TemporaryDirectory(prefix="lrsearch-") as private:
        study = Path(private) / "study.yaml"
        study.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        plugins = [f"--plugin={name}" for name in loaded_plugins()]
        command = [sys.executable, "-m", "lrsearch", "verify", str(folder), "--study", str(study), "--write", *plugins]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not (made := Certificate.load(folder)).checks:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtifactError(
            "a fresh process must be able to verify the exported model", value=said, place=str(folder / CERTIFICATE),
            remedy="Run lrsearch export --debug to see more.",
        )
    return made


def export_picked(
    study: Path, front: pd.DataFrame, rows: Sequence[int], out: Path, base: nn.Module, sample: Tensor, origin: Origin, progress: Progress,
    certify: Callable[[Path], Certificate] | None = None, lowering: Lowering = Lowering(), scoring: Examples | None = None,  # noqa: B008
) -> Certificate:
    """Export the first of ``rows`` whose certificate misses no limit to ``out``; told of each is what it missed.

    Where the last one misses a limit too, nothing is written; where a single row is given, it is written all the same.

    Args:
        certify: verifies an exported folder and writes its certificate; :func:`certified` if None.
        lowering: see :func:`write_folder`, as ``scoring``.

    Raises:
        ArtifactError: ``out`` is something else than an exported folder.
    """
    _refuse_strangers(out)
    out = out.resolve()
    progress.stage("Exporting", len(rows))
    out.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with _scratch(out.parent) as scratch:
            made, own = scratch / out.name, replace(origin, model=front.model[row])
            unmade = write_folder(study / front.model[row], made, base, sample, own, lowering, scoring)
            certificate = certify(made) if certify else certified(made, origin.config)
            if unmade:
                certificate = replace(certificate, unchecked={**certificate.unchecked, **unmade})
                certificate.save(made)
            if len(rows) == 1 or not limits_missed(certificate):
                (made / CARD).write_text(model_card(certificate, (made / ONNX).exists()), encoding="utf-8")
                _refuse_strangers(out)  # again, as it took a while
                if out.exists():
                    os.replace(out, made.with_name(f"{made.name}-before"))
                os.replace(made, out)
                return certificate
        missed = "; ".join(check.missed() for check in certificate.failures)
        progress.note(f"refused {front.model[row]}: {missed}")
        progress.advance()
        origin = replace(origin, refused={**origin.refused, front.model[row]: missed})
    return certificate


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder of this process alone in ``folder``, gone afterwards; those of processes that were killed go too."""
    for left in folder.glob(f"{_SCRATCH}*"):
        if (left / _LOCK).is_file() and not left.is_symlink():
            with suppress(Timeout), FileLock(left / _LOCK, timeout=0):  # nobody holds it
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as made, FileLock(Path(made) / _LOCK):
        yield Path(made)


def limits_missed(certificate: Certificate) -> bool:
    """Whether a budget or a condition was missed, and nothing else is wrong."""
    failed = certificate.failures
    return bool(failed) and all(check.name.startswith(("budget", "pick")) for check in failed)


def _refuse_strangers(out: Path) -> None:
    """Check that ``out`` is missing, empty, or an exported folder with nothing else in it."""
    if found := _strange(out):
        raise ArtifactError("only an exported folder may be replaced", value=found, place=str(out), remedy="Give another --out.")


def _strange(out: Path) -> str:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        return "a link" if out.is_symlink() else "a file"
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if others := sorted(names - {artifact.PLAN, artifact.WEIGHTS, ONNX, CERTIFICATE, CERTIFICATE_TABLE, CARD}):
        return f"a folder with {', '.join(others[:3])}"
    return "no certificate" if names and not {"checks", "origin"} <= read_json(out / CERTIFICATE).keys() else ""
