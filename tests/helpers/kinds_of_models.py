"""Tiny models of every kind of input and output: each takes 3 examples or more, and has layers that can be compressed."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Found:
    """What a model returns that names its outputs; torch knows nothing of the class."""

    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None


class Tokens(nn.Module):
    """Keywords (n, 6) int64 and a mask (n, 6) → :class:`Found`, as transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(11, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, input_ids, attention_mask=None, scale=1.0):
        h = self.mix(self.embed(input_ids)).relu() * scale
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        return Found(self.head(h.mean(1)), hidden=(h,))


class Two(nn.Module):
    """An image (n, 3, 8, 8) and a vector (n, 7) → a tuple of an output (n, 5) and of a nest of others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.side, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(7, 16), nn.Linear(16, 5)

    def forward(self, image, vector):
        h = self.norm(self.conv(image)).relu().mean((2, 3)) + self.side(vector)
        return self.head(h), {"features": [h], "none": None}


class Keywords(nn.Module):
    """(n, 3, 8, 8) → (n, 5); every layer is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.narrow, self.act, self.head = nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5)

    def forward(self, x):
        h = self.norm(input=self.conv(input=x)).relu().mean((2, 3))
        return self.head(input=self.act(input=self.narrow(input=h)))


class Cast(nn.Module):
    """Integers or booleans (n, 3, 8, 8) → (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.conv(x / 255 if x.dtype == torch.uint8 else x.float()).relu().mean((2, 3)))


class Autocast(Cast):
    """(n, 3, 8, 8) → (n, 5), computed in bfloat16."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class InPlace(nn.Module):
    """(n, 12) → (n, 5); normalises its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(F.relu(self.a(x.sub_(0.5).mul_(2))))


def vision(dtype: torch.dtype = torch.float32) -> nn.Module:
    """(n, 3, 8, 8) → (n, 5)."""
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5)
    return nn.Sequential(*layers).to(dtype)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8)


KINDS = {
    "keywords and a dataclass": (
        Tokens, lambda n: {"input_ids": torch.randint(11, (n, 6)), "attention_mask": (torch.rand(n, 6) < 0.7).long()},
    ),
    "keywords and a constant": (Tokens, lambda n: {"input_ids": torch.randint(11, (n, 6)), "attention_mask": None, "scale": 2.0}),
    "two inputs and nested outputs": (Two, lambda n: (images(n), torch.randn(n, 7))),
    "tokens": (Tokens, lambda n: torch.randint(11, (n, 6))),
    "layers called by keyword": (Keywords, images),
    "booleans": (Cast, lambda n: images(n) > 0),
    "uint8": (Cast, lambda n: torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8)),
    "float16": (lambda: vision(torch.float16), lambda n: images(n).half()),
    "bfloat16": (lambda: vision(torch.bfloat16), lambda n: images(n).bfloat16()),
    "float64": (lambda: vision(torch.float64), lambda n: images(n).double()),
    "autocast": (Autocast, images),
    "changes its input": (InPlace, lambda n: torch.rand(n, 12)),
}  # fmt: skip


def each_kind(*quick: str) -> pytest.MarkDecorator:
    """``name``: every kind of model; all but the ``quick`` ones are slow."""
    return pytest.mark.parametrize("name", [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])


def kind(name: str, examples: int = 4):
    """A model of that kind in eval mode, whose BatchNorms have seen something, and a batch for it."""
    torch.manual_seed(0)
    build, batch = KINDS[name]
    model = build()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval(), batch(examples)
