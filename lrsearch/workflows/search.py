"""The main job: search every layer's rank and sparsity."""

from pathlib import Path
from typing import Any

from torch import nn

from lrsearch.spec.cost import Budget
from lrsearch.spec.progress import Progress
from lrsearch.spec.space import Space
from lrsearch.study.opening import open_search
from lrsearch.study.surroundings import surroundings
from lrsearch.study.workers import working
from lrsearch.workflows.materials import Data, Materials, Study, settings_of
from lrsearch.workflows.result import Result
from lrsearch.workflows.steps.log import log_to


@surroundings()
def search(
    model: nn.Module | Study, *, calibration: Data | None = None, score: Data | None = None, train: Data | None = None,
    budget: Budget | None = None, space: Space | str | None = None, out: str | Path | None = None, progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Search every layer's rank and sparsity under a budget; the same ``out`` again resumes.

    Args:
        model: the dense model, returning logits (n, classes), which is not changed; or a study file, which names model and data.
        calibration: (input, label) pairs for the layers' statistics and BatchNorm.
        score: pairs that rank the candidates.
        train: pairs to finetune on, if ``proxy={"finetune": {"steps": …}}`` asks for it.
        budget: upper limits; none by default, which gives the whole front.
        space: a :class:`Space`, or the name or path of a space file.
        out: study folder, ``runs/<name>`` by default.
        progress: told how far the study is.
        **settings: further keys of a study file: ``name``, ``objectives``, ``search``, ``proxy``, ``storage``, ``device``.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> result = lrsearch.search(model, calibration=a, score=b, budget=lrsearch.Budget(params=0.3))
        >>> result.front, result.plot(), result.load(0)
    """
    network, study = (model, None) if isinstance(model, nn.Module) else (None, model)
    config = settings_of(study, settings, "lrsearch.search", budget, space)
    roles = ("calibration", "score", *(("train",) if config.proxy.finetune.steps else ()))
    materials = Materials.of(network, config, *roles, calibration=calibration, score=score, train=train)
    return _run(materials, Path(out or f"runs/{config.name}"), progress or Progress())


def _run(materials: Materials, out: Path, progress: Progress) -> Result:
    model, config, calibration, scoring = materials.model, materials.config, materials.calibration, materials.score
    with working(out) as workers, log_to(out / "search.log"):
        if workers.others:
            progress.note("another search works on this study; this one joins it")
        with workers.turn:
            opened = open_search(model, calibration, scoring, materials.sets.get("train"), config, out, progress, workers)

        def result() -> Result:
            baseline, dense = opened.evaluator.baseline, opened.proposals.decoder.costs.dense
            return Result(out, opened.records, dense, baseline, config, model, scoring)

        try:
            opened.run()
        finally:
            if opened.records:
                with workers.turn:
                    result().write()
        return result()
