"""A study's plans as an Optuna study over what became of the layers, for Optuna's own plots and importances."""

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import create_trial

from lrsearch.search.parameters import ratios
from lrsearch.search.records import Record, values
from lrsearch.spec.layer import LayerSpec
from lrsearch.study.trials import LAYERS, name_objectives, readable

OptunaStudy = Study
OVER = "milliseconds over the latency budget, measured"


def resulting_study(
    records: Sequence[Record], layers: Sequence[LayerSpec], objectives: Sequence[str], over: Mapping[int, float] | None = None,
) -> Study:
    """An Optuna study in memory: a trial per plan that reached the last rung, twins once.

    Its parameters are ``rank/NAME``, the rank of L as a ratio of the largest (mean over its modes), and ``density/NAME``, the share
    of values that S keeps (1 of a layer left as it is). Its values are the objectives, costs absolute.

    Args:
        over: trial → milliseconds over the latency budget when measured whole: Optuna's constraint, which makes it infeasible.
    """
    late = over or {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = StudyDirection.MINIMIZE if objectives[0] == "divergence" else StudyDirection.MAXIMIZE
    study = optuna.create_study(directions=[first, *[StudyDirection.MINIMIZE] * (len(objectives) - 1)])
    name_objectives(study, objectives)
    space: dict[str, BaseDistribution] = {f"{kind}/{s.name}": FloatDistribution(0, 1) for s in layers for kind in ("rank", "density")}
    for record in records:
        if record.complete and record.twin is None:
            found = {layer.name: ratios(layer, record.plan[layer.name]) for layer in layers}
            named = {f"{kind}/{name}": v for name, pair in found.items() for kind, v in zip(("rank", "density"), pair, strict=True)}
            quality, *costs = values(record, objectives)
            shown = [quality if objectives[0] == "divergence" else -quality, *costs]
            attributes = {"trial": record.number, "source": record.source, LAYERS: readable(record.plan)}
            constraints = {OVER: late[record.number]} if record.number in late else None
            study.add_trial(
                create_trial(params=named, distributions=space, values=shown, user_attrs=attributes, constraints=constraints)
            )
    return study
