"""Memory, disk and time of profiling a large model: ViT-B with random weights, by 64 random images.

    LRSEARCH_MEMORY='4 GiB' python studies/benchmarks/large.py [--model vit_base_patch16_224] [--examples 64] [--blocks 12] [--block 1]

Statistics and sketches are those of all layers; fitted are the layers of one block, whose time is multiplied by the number of blocks, as
blocks are alike. Printed are the largest resident memory after each stage, and the largest size of what is on disk.
"""

import argparse
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import timm
import torch

from lrsearch import Budget, Progress
from lrsearch.profile import sweep as profiles
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.study.opening import open_search
from lrsearch.task.data import Examples

TWO = {"steps": 2, "min": 0.2, "max": 0.5}
SPACE = {"rules": [{"rank_ratio": TWO, "density": TWO, "combined_rank_ratio": TWO, "combined_density": TWO}]}


class Said(Progress):
    """Prints each stage with the largest memory until then."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def stage(self, title: str, _: int, __: int = 0) -> None:
        self.tell(f"before {title}")

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def tell(self, when: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{when}: at most {peak:.2f} GiB, {time.process_time():.0f} s of CPU, {time.monotonic() - self.began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=12, help="that the model has")
    parser.add_argument("--block", type=int, default=1, help="that is fitted")
    args = parser.parse_args()
    torch.manual_seed(0)
    told, size = Said(), timm.data.resolve_data_config(model=timm.create_model(args.model))["input_size"]
    model = timm.create_model(args.model, depth=args.blocks).eval()
    images = torch.randn(args.examples + 4, *size)
    labels = torch.arange(len(images)) % 1000
    sets = [Examples((images[part], labels[part]), role, None, model) for part, role in (
        (slice(None, -4), "calibration"), (slice(-4, None), "score"))]
    told.tell("model and images")
    config = parse(StudyConfig, {"name": "large", "budget": dict(Budget(params=0.5).items()), "space": SPACE}, "benchmark")
    chosen, seconds, sweep = f"blocks.{args.block}.", dict[str, float](), profiles.sweep

    def one_block(weight: Any, layer: Any, menu: Any, statistics: Any) -> dict[str, torch.Tensor]:
        if layer.name.startswith(chosen):
            began = time.process_time()
            found = sweep(weight, layer, menu, statistics)
            seconds[layer.name] = time.process_time() - began
            told.tell(f"{layer.name}, {len(menu)} choices, {seconds[layer.name]:.0f} s of CPU, {size_of(found) / 2**20:.0f} MiB")
            return found
        return {"damage": torch.ones(len(menu), dtype=torch.float64), "error": torch.ones(len(menu), dtype=torch.float64)}

    profiles.sweep = one_block
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        os.environ["LRSEARCH_CACHE"] = f"{folder}/cache"
        disk, ended = [0], threading.Event()
        watching = threading.Thread(target=watch, args=(Path(folder), disk, ended))
        watching.start()
        try:
            open_search(model, *sets, None, config, Path(folder) / "study", told)
        finally:
            ended.set()
            watching.join()
    told.tell("the end")
    print(f"on disk at most {disk[0] / 1e9:.1f} GB; fits of block {args.block}: {sum(seconds.values()):.0f} s of CPU")


def size_of(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def watch(folder: Path, most: list[int], ended: threading.Event) -> None:
    """Note the largest size of ``folder``, looked at each second."""
    while not ended.wait(1.0):
        total = 0
        for path in folder.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except OSError:
                continue
        most[0] = max(most[0], total)


if __name__ == "__main__":
    main()
