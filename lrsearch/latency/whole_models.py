"""Probes: a few whole models, timed beside the dense one, that show how far a table of layers alone can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrsearch.latency.survey import Survey, timed
from lrsearch.latency.table import LatencyTable
from lrsearch.search.knapsack import Knapsack
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.progress import Progress

PROBES = 8  # whole models that are timed beside the dense one
Menus = Mapping[str, Sequence[LayerPlan]]


def probes(survey: Survey, table: LatencyTable, menus: Menus) -> list[Plan]:
    """Plans such as a search proposes, evenly from little to nearly the most that can be saved.

    What a choice costs in quality is not known yet. The share of a layer's values that it gives up stands for that, times a random
    weight of the layer. Every probe draws new weights, because the time saved depends on which layers become small.
    """
    choices = [(layer, plan) for layer in survey.layers for plan in menus[layer.name]]
    index = np.repeat(np.arange(len(survey.layers)), [len(menus[layer.name]) for layer in survey.layers])
    ms = np.array([table.ms(survey.calls[layer.name], plan, survey.chains.get(layer.name)) for layer, plan in choices])
    lost = np.array([1 - layer_cost(layer, plan).params / layer.numel for layer, plan in choices])
    knapsack = Knapsack(index, {"latency_ms": ms})
    dense = sum(table.ms(survey.calls[layer.name], LayerPlan()) for layer in survey.layers)
    limits = np.linspace(dense, knapsack.cheapest("latency_ms"), PROBES + 2)[1:-1]
    matters = np.random.default_rng(0).lognormal(size=(PROBES, len(survey.layers)))
    picks = [knapsack.solve(lost * drawn[index], {"latency_ms": float(limit)}) for drawn, limit in zip(matters, limits, strict=True)]
    plans = [Plan({choices[i][0].name: choices[i][1] for i in pick}) for pick in picks if pick is not None]
    return [plan for plan in plans if plan.layers]


def corrected(survey: Survey, table: LatencyTable, menus: Menus, progress: Progress) -> LatencyTable:
    """``table``, measured here and now, with its ``dense``, ``scale`` and ``stray`` as the probes show them.

    A whole model takes another time beside hundreds of small models than beside a few whole ones. Fronts are measured beside a few.
    So ``dense`` and what plans save are taken from the session of the probes.
    """
    plans = probes(survey, table, menus)
    if not plans:
        return table
    progress.stage("Building models", len(plans) + 1)
    merged = [survey.merged(table, plan) for plan in plans]
    models = (survey.runners(plan, names, table.conditions) for plan, names in zip((Plan(), *plans), ([], *merged), strict=True))
    dense, *times = timed(models, table.conditions.threads, progress.stage, progress.advance)
    alone, ms = np.array([survey.saved(table, plan) for plan in plans]), np.array([t.ms for t in times])
    scale = max(0.0, float(alone @ (dense.ms - ms) / (alone @ alone)))
    stray = (dense.ms - scale * alone) / ms - 1
    return replace(table, dense=dense, scale=scale, stray=float(np.sqrt(stray @ stray / max(1, len(plans) - 1))))
