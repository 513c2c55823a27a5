"""Products with a Gram matrix that multiply by its diagonal alone where there is nothing else.

So it is for inputs that never occur together with others, and for those that are always zero: taps of a convolution that see nothing
but padding, as in small images, and channels that never fire.
"""

from collections.abc import Callable

from torch import Tensor

from lrsearch.compress.matricize import times


class LiveGram:
    """A damped Gram matrix.

    Args:
        gram: ``(groups, columns, columns)``, or in blocks.

    Attributes:
        core: the same without these inputs, where there is one matrix.
    """

    def __init__(self, gram: Tensor) -> None:
        self._live = _live(gram)
        self.core = gram if self._live is None else gram[:, self._live][:, :, self._live]
        self._diagonal = gram[0].diagonal()

    def times(self, x: Tensor) -> Tensor:
        """``x`` (..., groups, n, columns) times the matrix."""
        return self.on_live(x, self._diagonal, lambda part: times(part, self.core))

    def on_live(self, x: Tensor, alone: Tensor | float, live: Callable[[Tensor], Tensor]) -> Tensor:
        """``live`` of the columns of ``x`` that ``core`` has, ``alone``, a number or one for each column, times the others."""
        if self._live is None:
            return live(x)
        found = alone * x
        found[..., self._live] = live(x[..., self._live])
        return found


def _live(gram: Tensor) -> Tensor | None:
    """Indices of the columns that are mixed with others; None where those are all, or there are several matrices."""
    if len(gram) > 1:
        return None
    mixed = ((gram[0] != 0).sum(0) > 1).nonzero()[:, 0]
    return mixed if 0 < len(mixed) < gram.shape[-1] else None
