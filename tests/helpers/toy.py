"""A decoder of four layers whose damage and costs are made up, so that nothing has to be fitted."""

import numpy as np

from lrsearch.search.decoder import Decoder
from lrsearch.spec.cost import Cost, CostModel, layer_cost
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.metrics import METRICS
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.space import Space

LAYERS = (
    LayerSpec("stem", "conv2d", (16, 3, 3, 3), 1, 144),
    LayerSpec("depthwise", "conv2d", (16, 1, 3, 3), 16, 36),
    LayerSpec("pointwise", "conv2d", (24, 16, 1, 1), 1, 36),
    LayerSpec("head", "linear", (32, 24), 1, 1),
)
FIXED = Cost(100, 500, 500, 444)
MENUS = Space().menus(LAYERS)
# A staircase over the rank; nothing but rank saves time, and dense takes 16 units.
STAIRS = {n: {p: (min(16, 4 * -(-p.rank[0] // 4)) if p.executed.rank else 16) / 1024 for p in menu} for n, menu in MENUS.items()}
COSTS = CostModel(FIXED, LAYERS, sum((layer_cost(layer, LayerPlan()) for layer in LAYERS), FIXED)).timed(0.05, STAIRS)
DENSE_COST = COSTS.dense.to_dict()
UNIT = {m: 1 / 1024 if m == "latency_ms" else 1 for m in METRICS}
LIMITED = ("params", "macs", "weight_bytes", "latency_ms")


def decoder(limits) -> Decoder:
    """Damage falls with what a choice keeps; the stem is the most delicate layer."""
    made = Decoder(COSTS, MENUS, limits)
    delicacy = {"stem": 10.0, "depthwise": 5.0, "pointwise": 1.0, "head": 0.1}
    kept = {n: np.array([p.density + 0.7 * sum(p.rank) / 24 for p in menu]) for n, menu in MENUS.items()}
    made.learn_damage({n: delicacy[n] * np.clip(1 - kept[n], 0, 1) ** 2 for n in MENUS})
    return made


def limit(metric, reach) -> float:
    """Between the smallest cost that any plan reaches (0) and the dense model's (1)."""
    least = decoder({}).smallest(metric)
    above = reach * (DENSE_COST[metric] - least)
    return least + (above if metric == "latency_ms" else int(above))
