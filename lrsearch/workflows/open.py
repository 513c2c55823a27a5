"""A study brought back from its folder."""

from pathlib import Path

from torch import nn

from lrsearch.study.surroundings import surroundings
from lrsearch.workflows.result import Result


@surroundings()
def open(path: str | Path, *, model: nn.Module | None = None) -> Result:
    """The result of a finished, stopped or running study, as its folder has it; takes a second, and writes nothing.

    Args:
        path: the study folder.
        model: the dense model, for :meth:`Result.load`; models of timm need none.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> result = lrsearch.open("runs/digits")
        >>> result.front, result.plot()
    """
    return Result.of(Path(path), model)
