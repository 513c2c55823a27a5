"""tucker2: a core between two channel mixings (Kim et al. 2016)."""

from math import prod

from tensorly.decomposition import partial_tucker
from torch import Tensor

from lrsearch.compress.formats.base import Factors
from lrsearch.compress.formats.chain import ConvShapes, DecomposedChain
from lrsearch.spec.formats import Rank, register
from lrsearch.spec.layer import LayerSpec

ITERATIONS = 10  # of higher-order orthogonal iteration


@register
class Tucker2(DecomposedChain):
    """1 x 1 to ``rank[1]`` channels, k x k to ``rank[0]``, 1 x 1 to the outputs; ``rank`` is (output, input)."""

    name = "tucker2"

    def max_rank(self, layer: LayerSpec) -> Rank:
        rows, kernel = layer.matrix_shape[1], prod(layer.kernel)
        return min(rows, layer.channels * kernel), min(layer.channels, rows * kernel)

    def rank(self, layer: LayerSpec, ratio: float) -> Rank:
        """As for all formats, but neither larger than the other and the kernel can use."""
        (out, inner), kernel = super().rank(layer, ratio), prod(layer.kernel)
        return min(out, inner * kernel), min(inner, out * kernel)

    def stages(self, layer: LayerSpec, rank: Rank) -> ConvShapes:
        g, (out, inner) = layer.groups, rank
        return (g * inner, layer.channels, 1, 1), (g * out, inner, *layer.kernel), (layer.rows, out, 1, 1)

    def axes(self, layer: LayerSpec) -> tuple[str, ...]:
        return "", "hw", ""

    def decompose(self, weight: Tensor, rank: Rank) -> Factors:
        (core, (left, right)), _ = partial_tucker(weight, rank=list(rank), modes=[0, 1], n_iter_max=ITERATIONS)
        return right.T[:, :, None, None], core, left[:, :, None, None]
