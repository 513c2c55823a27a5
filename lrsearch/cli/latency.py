"""The commands that measure latency: here, or through files on another machine."""

from pathlib import Path

from lrsearch.cli.display import Bars
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ConfigError, LatencyError
from lrsearch.latency import remote
from lrsearch.latency.backends import backend
from lrsearch.latency.survey import Survey
from lrsearch.latency.table import LatencyTable
from lrsearch.latency.whole_models import Menus
from lrsearch.spec.config import LatencyConfig, StudyConfig
from lrsearch.spec.plan import LayerPlan
from lrsearch.study.latency import measured
from lrsearch.task.sources import load_base, load_examples


def profile(config: StudyConfig, out: Path | None) -> int:
    """Measure the latency table of a study on this machine."""
    settings = _settings(config)
    backend(settings.backend)  # before any work
    path = out or Path(f"{config.name}-latency.json")
    _refuse_other_file(path)
    survey, menus = _survey(config)
    with Bars() as bars:
        table = measured(survey, menus, settings, None, bars)
    table.save(path)
    _show(table, survey, path)
    return 0


def pack(config: StudyConfig, out: Path) -> int:
    """Write what another machine is to time."""
    settings, (survey, _) = _settings(config), _survey(config)
    if settings.backend != remote.BACKEND:
        raise ConfigError("elsewhere, ONNX Runtime alone can be timed", value=settings.backend, place="latency.backend",
                          remedy=f"Set it to {remote.BACKEND}.")
    with Bars() as bars:
        bars.stage("Packing", len(survey.jobs) + 1)
        remote.pack(survey, out, settings.threads, bars.advance)
    size = sum(p.stat().st_size for p in out.rglob("*.onnx"))
    print(f"{len(survey.jobs) + 1} models, {size / 2**20:.0f} MiB, in {out}: copy it to the device, run `python runner.py` there")
    return 0


def ingest(config: StudyConfig, folder: Path, out: Path) -> int:
    """Make the table of what came back."""
    _refuse_other_file(out)
    survey, _ = _survey(config)
    table = remote.ingest(survey, folder, _settings(config).threads)
    table.save(out)
    _show(table, survey, out)
    return 0


def _refuse_other_file(path: Path) -> None:
    """Check that nothing but a latency table is replaced."""
    if path.exists():
        try:
            LatencyTable.load(path)
        except LatencyError as error:
            rule, remedy = "only a latency table may be replaced", "Give another --out."
            raise LatencyError(rule, value=error.value, place=str(path), remedy=remedy) from None


def _settings(config: StudyConfig) -> LatencyConfig:
    return config.latency or LatencyConfig()


def _survey(config: StudyConfig) -> tuple[Survey, Menus]:
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    model = load_base(config.model)
    sample = load_examples(config.data.calibration, "calibration", model).sample()
    model = prepare(model, config.space.split)
    found = inventory(model, sample)
    menus = config.space.menus(found.layers, found.refused)
    survey = Survey.of(model, found.layers, menus, sample, _settings(config).batch, joined=bool(config.about_latency))
    return survey, survey.led(menus)


def _show(table: LatencyTable, survey: Survey, path: Path) -> None:
    c = table.conditions
    faster = sum(table.ms([job.signature], job.choice) < table.ms([job.signature], LayerPlan()) for job in survey.jobs)
    print(f"{c.backend} {c.version}, threads {c.threads}, batch {c.batch}, {c.dtype}, {c.cpu}, load {c.load}, {c.date}")
    print(f"dense model {table.dense.ms:.3f} ms (median {table.dense.median:.3f}); {len(survey.jobs)} forms of "
          f"{len(table.entries)} distinct layers, {faster} faster than dense")
    if table.stray:
        print(f"whole models save {table.scale:.2f} times what their layers save alone, to within {table.stray:.1%} of their latency")
    print(f"written to {path}")
