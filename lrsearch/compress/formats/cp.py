"""cp: a sum of rank-one tensors over outputs, inputs and kernel positions."""

from tensorly.decomposition import parafac
from torch import Tensor

from lrsearch.compress.formats.base import Factors
from lrsearch.compress.formats.chain import ConvShapes, DecomposedChain
from lrsearch.spec.formats import Rank, register
from lrsearch.spec.layer import LayerSpec

ITERATIONS, RIDGE = 15, 1e-7  # of alternating least squares; its L2 penalty


@register
class Cp(DecomposedChain):
    """1 x 1 to ``rank`` channels, a depthwise k x k, 1 x 1 to the outputs (Lebedev et al. 2015, kernel as one mode)."""

    name = "cp"

    def max_rank(self, layer: LayerSpec) -> Rank:
        kh, kw = layer.kernel
        _, rows, columns = layer.matrix_shape
        return (rows * columns // max(rows, layer.channels, kh * kw),)

    def stages(self, layer: LayerSpec, rank: Rank) -> ConvShapes:
        inner = layer.groups * rank[0]
        return (inner, layer.channels, 1, 1), (inner, 1, *layer.kernel), (layer.rows, rank[0], 1, 1)

    def axes(self, layer: LayerSpec) -> tuple[str, ...]:
        return "", "hw", ""

    def decompose(self, weight: Tensor, rank: Rank) -> Factors:
        out, channels, kh, kw = weight.shape
        tensor = weight.reshape(out, channels, kh * kw)
        _, (left, right, kernel) = parafac(tensor, rank[0], n_iter_max=ITERATIONS, init="random", random_state=0, l2_reg=RIDGE)
        return right.T[:, :, None, None], kernel.T.reshape(-1, 1, kh, kw), left[:, :, None, None]
