"""``space: auto``: what layers may become, from what a study counts."""

from collections.abc import Collection

from lrsearch.spec.space import Range, Rule, Space

STORED = frozenset({"params", "weight_bytes", "nonzero_macs"})  # metrics that single zeros lower
TIMED = "latency_ms"
# Trains of tensors are left out: on ResNet-32 Tucker-2 or CP fits each layer better at equal cost (studies/results/formats_resnet32.txt).
LOW_RANK = ("svd", "spatial-svd", "tucker2", "cp")
WHOLE = ("column", "row")  # patterns that lower what a dense runtime executes
STEP = 4  # channels: runtimes take longer for numbers of them between, most of all in int8 (studies/results/lanes.txt)

_STORED = Rule(density=Range(min=0.02, max=0.85, steps=24), rank_ratio=Range(min=0.06, max=0.5, steps=6))
_EXECUTED = Rule(
    families=("sparse", "low-rank"), formats=LOW_RANK, patterns=WHOLE,
    density=Range(min=0.2, max=0.95, steps=12), rank_ratio=Range(min=0.08, max=0.7, steps=8),
)
_BOTH = Rule(
    formats=LOW_RANK, combined_formats=("svd",), patterns=("unstructured", *WHOLE), combined_patterns=("unstructured",),
    density=Range(min=0.02, max=0.95, steps=20), rank_ratio=Range(min=0.06, max=0.7, steps=8),
)


def auto_space(metrics: Collection[str]) -> Space:
    """One rule for every layer, that offers whatever lowers one of ``metrics``; which of it a layer takes, its damage decides.

    Single zeros lower what is stored, and nothing that a dense runtime executes; they leave less damage there than few ranks do, so
    low rank has few choices beside them. What is executed is lowered by every low-rank format and by whole columns and rows.

    Args:
        metrics: the costs in a study's budget and objectives. One that is not lrsearch's own may be lowered by anything.
    """
    if not set(metrics) - STORED:
        return Space(rules=(_STORED,))
    rule = _BOTH if set(metrics) - {TIMED, "macs"} else _EXECUTED
    return Space(rules=(rule.model_copy(update={"rank_multiple": "auto", "channel_multiple": STEP}) if TIMED in metrics else rule,))
