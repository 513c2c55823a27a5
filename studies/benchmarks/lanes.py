"""How long ONNX Runtime takes for two convolutions, by the number of channels between them, in int8 and float32.

    python studies/benchmarks/lanes.py
"""

import torch
from torch import nn

from lrsearch.latency.backends import backend
from lrsearch.latency.runner import interleaved, surroundings
from lrsearch.latency.survey import built
from lrsearch.latency.table import Conditions

SHAPES = (16, 16, 16, 3, 32), (32, 32, 32, 3, 16), (64, 64, 64, 3, 8), (16, 96, 24, 1, 56), (80, 480, 80, 1, 14)
ROUNDS = 24


def pair(into: int, between: int, out: int, kernel: int) -> nn.Module:
    """The pair between two cheap convolutions, as runtimes keep images in a layout of their own between convolutions."""
    first, last = (nn.Conv2d(n, n, 1, groups=n) for n in (into, out))
    middle = nn.Conv2d(into, between, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(between, out, kernel, padding=kernel // 2)
    return nn.Sequential(first, *middle, last).eval().requires_grad_(False)


def main() -> None:
    print("input x input, channels in -> between -> out, kernel; channels between: microseconds (lower quartile, one thread)")
    for dtype in ("int8", "float32"):
        where = Conditions("onnxruntime", backend("onnxruntime").version(), 1, 1, dtype, **surroundings())
        for into, whole, out, kernel, size in SHAPES:
            step = 4 if whole <= 64 else whole // 24
            numbers = sorted({*range(step, whole + 1, step), *(whole * i // 16 for i in range(2, 17))})
            models = [built(pair(into, n, out, kernel), torch.randn(1, into, size, size), where) for n in numbers]
            times = " ".join(f"{n}: {t.ms * 1e3:.1f}" for n, t in zip(numbers, interleaved(models, 1, rounds=ROUNDS), strict=True))
            print(f"{dtype} {size}x{size}, {into} -> {whole} -> {out}, {kernel}x{kernel}; {times}", flush=True)
    print(where)


if __name__ == "__main__":
    main()
