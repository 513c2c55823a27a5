"""Augmentations: a batch of inputs → the same examples, changed at random."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lrsearch.errors import ConfigError, DataError
from lrsearch.spec.registry import resolve
from lrsearch.task.forward import Inputs

Augment = Callable[[Tensor], Tensor]
COLOURS = 3  # channels of a colour image
MARGIN = 8  # pixels are padded by an eighth of height and width, 4 of CIFAR's 32


def load_augment(name: str, sample: Inputs) -> Augment | None:
    """``flip-crop``, the user's function at a dotted path, whose result is checked, or None; ``auto`` is what suits ``sample``.

    Raises:
        ConfigError: the dotted path leads nowhere.
    """
    if name == "none" or (name == "auto" and not is_images(sample)):
        return None
    return flip_crop if name in ("auto", "flip-crop") else _checked(resolve(name, "recover.augment"))


def is_images(inputs: Inputs) -> bool:
    """Whether ``inputs`` are colour images: one channel may be a spectrogram or a digit, whose mirror image is something else."""
    known = isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.dim() == 4
    return known and inputs.shape[1] == COLOURS and min(inputs.shape[2:]) >= MARGIN


def flip_crop(x: Tensor) -> Tensor:
    """Each image mirrored or not, padded with zeros by an eighth of its sides and cropped somewhere (He et al. 2016).

    Args:
        x: images ``(n, channels, height, width)``.

    Raises:
        DataError: they are not images.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise DataError(
            "flip-crop needs images (n, channels, height, width)", value=_shown(x), place="augment",
            remedy="Use none, or, in recover, a function of yours.",
        )
    n, height, width = len(x), *x.shape[2:]
    tall, wide = height // MARGIN, width // MARGIN
    padded = F.pad(torch.where(torch.rand(n, 1, 1, 1).to(x.device) < 0.5, x.flip(-1), x), (wide, wide, tall, tall))
    top, left = (torch.randint(2 * m + 1, (n, 1)).to(x.device) for m in (tall, wide))
    rows = (top + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=x.device))[:, None, None, :]
    examples, channels = torch.arange(n, device=x.device)[:, None, None, None], torch.arange(x.shape[1], device=x.device)[:, None, None]
    return padded[examples, channels, rows, columns]


def _checked(function: Callable[[Tensor], object]) -> Augment:
    def augment(x: Tensor) -> Tensor:
        try:
            found = function(x)
        except Exception as error:
            raise ConfigError(
                "recover.augment must run on a batch of inputs", value=f"{type(error).__name__}: {error}", place="recover.augment",
                remedy="Mend the function; --debug shows where it failed.",
            ) from error
        if not isinstance(found, Tensor) or len(found) != len(x) or not found.is_floating_point():
            raise ConfigError(
                "recover.augment must return as many inputs", place="recover.augment",
                value=_shown(found),
                remedy="Return a floating-point tensor with one row per input.",
            )
        return found

    return augment


def _shown(found: object) -> object:
    return tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
