"""The staircases of the ranks."""

from lrsearch.latency.runner import Timing
from lrsearch.latency.table import Conditions, LatencyTable
from lrsearch.report.latency import staircases

ALONE = "conv2d 16x64x1x1 on 1x64x8x8, stride 1x1, padding 0-0-0-0 constant, dilation 1x1, groups 1"
DEPTHWISE = "conv2d 64x1x3x3 on 1x64x16x16, stride 2x2, padding 1-1-1-1 constant, dilation 1x1, groups 64"


def timings(*ms: float) -> dict[str, Timing]:
    return dict(zip(("dense", "svd rank 8", "svd rank 4", "density 0.3 column"), (Timing(t, t, t, t, 1) for t in ms), strict=True))


def test_ranks_ascend_and_a_layer_timed_with_what_feeds_it_has_its_own_stairs_and_stride():
    entries = {ALONE: timings(2.0, 1.5, 1.0, 0.5), f"{ALONE}, fed by {DEPTHWISE}, fed by {DEPTHWISE}": timings(5.0, 4.0, 3.5, 1.0)}
    conditions = Conditions("torch", "1", 1, 1, "float32", "-")
    fed, alone = staircases(LatencyTable(conditions, "-", Timing(9, 9, 9, 9, 1), entries))
    assert (fed.layer, alone.layer) == ("16x64x1x1 on 64x8x8 with its feed", "16x64x1x1 on 64x8x8")
    assert (alone.ranks, alone.ms, alone.dense) == (((4,), (8,)), (1.0, 1.5), 2.0)
    assert fed.ms == (3.5, 4.0)
