"""Records → pandas: the front, all trials, and what the search added to its controls."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrsearch.compress.artifact import WEIGHTS
from lrsearch.search.controls import CONTROLS
from lrsearch.search.records import DENSE_INT8, SEARCH, Record, front, reached, values
from lrsearch.spec.cost import Cost, measured
from lrsearch.spec.front import hypervolume
from lrsearch.spec.score import FORMER_NAMES, KL_FLOOR, Chance, Score

ALL_CONTROLS, ALL = "all controls", "all"


class _Named:
    """What answers to former names too, such as ``front.kl`` and ``row["kl"]``."""

    @property
    def kl(self) -> Any:
        """``divergence``."""
        return self.divergence  # type: ignore[attr-defined]

    @property
    def kl_stderr(self) -> Any:
        """``divergence_stderr``."""
        return self.divergence_stderr  # type: ignore[attr-defined]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_present(key))  # type: ignore[misc]


def _present(key: Any) -> Any:
    """``key``, a name or several, as columns are called now."""
    if isinstance(key, list):
        return [_present(each) for each in key]
    return FORMER_NAMES.get(key, key) if isinstance(key, str) else key


class Values(_Named, pd.Series):
    """A row, or a column, of :class:`Models`."""

    @property
    def _constructor(self) -> type["Values"]:
        return Values


class Models(_Named, pd.DataFrame):
    """A row per model."""

    @property
    def _constructor(self) -> type["Models"]:
        return Models

    @property
    def _constructor_sliced(self) -> type[Values]:
        return Values

    def sort_values(self, by: Any, **how: Any) -> Any:
        """As pandas' own."""
        return super().sort_values(_present(by), **how)


def _columns(dense: Cost) -> list[str]:
    """Those of a study without a trial."""
    costs = measured(dense)
    return [
        "trial", "source", "on_front", "complete", "rung", "metric", "metric_stderr", "metric_drop", "divergence", "divergence_stderr",
        "finetune_steps", "divergence_before_finetune", "metric_before_finetune", *costs, *(f"{m}_ratio" for m in costs),
        "sparse_layers", "low_rank_layers", "low_rank_sparse_layers", "batchnorm_recalibrated", "recovered", "at_chance", "model",
    ]


def trials_frame(
    records: Sequence[Record], dense: Cost, baseline: Score, objectives: Sequence[str], over: Collection[int] = (),
    chance: Chance | None = None,
) -> pd.DataFrame:
    """One row per plan, with the scores of the highest ``rung`` that it reached, or untrained where its finetune made it worse.

    Costs are absolute and as ``*_ratio`` of dense, ``metric_drop`` is against dense, ``metric_stderr`` NaN for a metric of the user's.

    Args:
        over: trials that are over a budget when they are measured: the front is that of the others.
        chance: what a model scores that does not look at its inputs: ``at_chance`` says who is no better.
    """
    members = {r.number for r in front([r for r in records if r.number not in over], objectives)}
    rows = []
    for r in records:
        families = Counter(p.family for p in r.plan.layers.values())
        costs = {m: getattr(r.cost, m) for m in measured(dense)}
        rows.append({
            "trial": r.number, "source": r.source, "on_front": r.number in members, "complete": r.complete,
            "rung": r.rung, "metric": _known(r.score.metric), "metric_stderr": _known(r.score.metric_stderr),
            "metric_drop": _known(baseline.metric) - _known(r.score.metric),
            "divergence": r.score.divergence, "divergence_stderr": r.score.divergence_stderr, "finetune_steps": r.score.fidelity,
            "divergence_before_finetune": r.scores[0].divergence, "metric_before_finetune": _known(r.scores[0].metric),
            **costs, **{f"{m}_ratio": v / (getattr(dense, m) or 1) for m, v in costs.items()},
            **{f.replace("-", "_").replace("+", "_") + "_layers": families[f] for f in ("sparse", "low-rank", "low-rank+sparse")},
            "batchnorm_recalibrated": r.score.batchnorm, "recovered": False, "at_chance": r.score.at_chance(chance), "model": r.model,
        })
    return Models(rows, columns=None if rows else _columns(dense))


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def rungs_frame(records: Sequence[Record]) -> pd.DataFrame:
    """How many plans reached each rung, of the search and of others; plans that several sources made count once."""
    own = [r for r in records if r.twin is None]
    rows = []
    for rung, plans in enumerate(reached(own)):
        steps = {r.scores[rung].fidelity for r in own if r.rung >= rung}
        searched = sum(r.rung >= rung for r in own if r.source == SEARCH)
        rows.append((rung, max(steps), plans, searched, plans - searched))
    return pd.DataFrame(rows, columns=["rung", "finetune_steps", "plans", "searched", "controls"])


def with_recovered(
    trials: pd.DataFrame, recovered: Sequence[Record], records: Sequence[Record], dense: Cost, baseline: Score, objectives: Sequence[str],
    chance: Chance | None = None,
) -> pd.DataFrame:
    """``trials`` and the models recovered of some, which join the front where nothing dominates them.

    They displace none of the search's members, which were not finetuned as long and may be recovered too. Their rung is the search's.
    """
    if not recovered:
        return trials
    best = front([*records, *recovered], objectives)
    joined = trials_frame(recovered, dense, baseline, objectives, (), chance)
    joined = joined.assign(recovered=True, rung=joined.rung - 1, on_front=[r in best for r in recovered])
    return pd.concat([trials, joined], ignore_index=True)


def study_frame(
    records: Sequence[Record], recovered: Sequence[Record], dense: Cost, baseline: Score, objectives: Sequence[str],
    over: Collection[int], measured: Mapping[str, Mapping[str, float]], chance: Chance | None = None,
) -> pd.DataFrame:
    """All that a study came to: :func:`trials_frame`, what was recovered, and what was measured whole, if anything was."""
    holding = [r for r in records if r.number not in over]
    trials = trials_frame(records, dense, baseline, objectives, over, chance)
    trials = with_recovered(trials, recovered, holding, dense, baseline, objectives, chance)
    return verified(trials, measured) if measured else trials


def verified(trials: pd.DataFrame, measured: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """``trials`` with what whole models took, ``measured_ms`` and, of the dense one beside them, ``measured_ms_ratio``, NaN where none
    was measured, and, of a study with a latency budget, ``verified``.

    Args:
        measured: trial → what was found, as :meth:`lrsearch.study.latency.Timed.time_front` writes it.
    """
    found = [measured.get(str(trial), {}) for trial in trials.trial]
    ms, dense = (np.array([f.get(key, np.nan) for f in found], dtype=np.float64) for key in ("ms", "dense_ms"))
    shown = trials.assign(measured_ms=ms, measured_ms_ratio=ms / dense)
    if any("verified" in f for f in found):
        shown = shown.assign(verified=pd.array([f.get("verified") for f in found], dtype="boolean"))
    return shown


def dense_int8_frame(found: Mapping[str, Any], dense: Cost, baseline: Score) -> pd.DataFrame:
    """The dense model in int8 as a row like those of :func:`study_frame`: no member of the front, as it is no plan; no row if not measured.

    Args:
        found: as :func:`lrsearch.study.latency.dense_int8` reads it. ``latency_ms`` is what the table would say of as large a share.
    """
    if not found:
        return pd.DataFrame()
    score, share = Score.of(found["score"]), found["ms"] / found["dense_ms"]
    costs: dict[str, float] = {m: getattr(dense, m) for m in measured(dense)} | {"latency_ms": (dense.latency_ms or 0.0) * share}
    ratios = {f"{m}_ratio": v / (getattr(dense, m) or 1) for m, v in costs.items()}
    unknown = {"weight_bytes": np.nan, "weight_bytes_ratio": np.nan}  # it is not stored so
    return pd.DataFrame([{
        "trial": -1, "source": DENSE_INT8, "on_front": False, "complete": True, "rung": 0, "metric": _known(score.metric),
        "metric_stderr": _known(score.metric_stderr), "metric_drop": _known(baseline.metric) - _known(score.metric),
        "divergence": score.divergence, "divergence_stderr": score.divergence_stderr, "finetune_steps": 0,
        "divergence_before_finetune": score.divergence, "metric_before_finetune": _known(score.metric),
        **costs, **ratios, **unknown, "measured_ms": found["ms"], "measured_ms_ratio": share,
        "sparse_layers": 0, "low_rank_layers": 0, "low_rank_sparse_layers": 0,
        "batchnorm_recalibrated": False, "recovered": False, "model": "",
    }], index=["–"])


def front_frame(trials: pd.DataFrame, objectives: Sequence[str], folder: Path) -> pd.DataFrame:
    """The front's rows, largest first; row ``i`` is what ``load(i)`` loads.

    Args:
        folder: of the study: ``saved`` says whose model is in it; a search makes what is missing again.
    """
    members = trials[trials.on_front.astype(bool)].sort_values(objectives[1], ascending=False)
    members = members.drop(columns=["on_front", "complete"]).reset_index(drop=True)
    return members.assign(saved=[(folder / model / WEIGHTS).is_file() for model in members.model])


def comparison(records: Sequence[Record], dense: Cost, objectives: Sequence[str]) -> pd.DataFrame:
    """Hypervolume of the search's own plans, of each control's, of all controls' and of all, at equal reference point.

    Axes: log10 of divergence (floored at 1e-4) or the negated metric, and costs as ratios of dense.
    Reference point: the worst quality over all finished plans, and the dense cost.
    """
    complete = [r for r in records if r.complete]
    points = {s: points_of([r for r in complete if r.source == s], dense, objectives) for s in (SEARCH, *CONTROLS)}
    controls = np.concatenate([points[s] for s in CONTROLS])
    stacked = np.concatenate([points[SEARCH], controls])
    if not len(stacked):
        return pd.DataFrame(columns=["source", "plans", "hypervolume"])
    reference = np.r_[stacked[:, 0].max() + 1e-9, np.full(len(objectives) - 1, 1.0)]
    rows = [(s, len(p), hypervolume(p, reference)) for s, p in {**points, ALL_CONTROLS: controls, ALL: stacked}.items()]
    table = pd.DataFrame(rows, columns=["source", "plans", "hypervolume"])
    table.attrs["reference"] = reference.tolist()
    return table


def points_of(records: Sequence[Record], dense: Cost, objectives: Sequence[str]) -> np.ndarray:
    """``(n, objectives)`` of what :func:`comparison` says, to be minimised."""
    rows = []
    for r in records:
        first, *costs = values(r, objectives)
        quality = np.log10(max(first, KL_FLOOR)) if objectives[0] == "divergence" else first
        rows.append([quality, *(c / getattr(dense, m) for c, m in zip(costs, objectives[1:], strict=True))])
    return np.array(rows).reshape(len(rows), len(objectives))
