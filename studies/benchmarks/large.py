"""Memory, disk and time of profiling a large model: ViT-B with random weights, by 64 random images.

    LRSEARCH_MEMORY='1 GiB' python studies/benchmarks/large.py [--model vit_base_patch16_224] [--examples 64] [--blocks 12] [--block 1]

Statistics and sketches are those of all layers; fitted are the layers of one block, as blocks are alike, or with ``--block all`` those of
all. Printed are the largest resident memory until the end of each stage (VmHWM, as Linux counts it); the largest of its two parts, looked
at ten times a second, which need not have been at the same time: memory of the process's own (RssAnon), and pages of files, libraries
among them, which Linux takes back where it needs room (RssFile); and the largest size of what is on disk.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import timm
import torch

from lrsearch import Budget, Progress
from lrsearch.profile import build as profiles
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.study.opening import open_search
from lrsearch.task.data import Examples

GIB = 2**20  # of the kB that /proc counts in


def space(steps: int) -> dict[str, Any]:
    """``steps`` ranks and as many densities, alone and all together."""
    grid = {"steps": steps, "min": 0.2, "max": 0.5}
    return {"rules": [{"rank_ratio": grid, "density": grid, "combined_rank_ratio": grid, "combined_density": grid}]}


def memory() -> dict[str, float]:
    """VmHWM, RssAnon and RssFile of this process now, in GiB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name.rstrip(":"): int(values[0]) / GIB for name, *values in lines if name in ("VmHWM:", "RssAnon:", "RssFile:")}


class Said(Progress):
    """Prints each stage with the largest memory until then."""

    def __init__(self) -> None:
        self.began, self.most = time.monotonic(), memory()
        self.ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.1):
            self.most = {name: max(size, self.most[name]) for name, size in memory().items()}

    def end(self) -> None:
        self.ended.set()
        self._watching.join()

    def stage(self, title: str, _: int, __: int = 0) -> None:
        self.tell(f"before {title}")

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def tell(self, when: str) -> None:
        most = {name: max(size, self.most[name]) for name, size in memory().items()}
        parts = f"{most['VmHWM']:.2f} GiB (own {most['RssAnon']:.2f}, files {most['RssFile']:.2f})"
        print(f"{when}: at most {parts}, {time.process_time():.0f} s of CPU, {time.monotonic() - self.began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=12, help="that the model has")
    parser.add_argument("--block", default="1", help="that is fitted, or all")
    parser.add_argument("--steps", type=int, default=2, help="ranks and densities that are offered")
    args = parser.parse_args()
    torch.manual_seed(0)
    told, size = Said(), timm.data.resolve_data_config(model=timm.create_model(args.model))["input_size"]
    model = timm.create_model(args.model, depth=args.blocks).eval()
    images = torch.randn(args.examples + 4, *size)
    labels = torch.arange(len(images)) % 1000
    calibration, score = (Examples((images[part], labels[part]), role, None, model) for part, role in (
        (slice(None, -4), "calibration"), (slice(-4, None), "score")))
    told.tell("model and images")
    config = parse(StudyConfig, {"name": "large", "budget": dict(Budget(params=0.6).items()), "space": space(args.steps)}, "benchmark")
    chosen, seconds, sweep = "" if args.block == "all" else f"blocks.{args.block}.", dict[str, float](), profiles.sweep

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
            open_search(model, calibration, score, None, config, Path(folder) / "study", told)
        finally:
            ended.set()
            watching.join()
            told.end()
    told.tell("the end")
    print(f"on disk at most {disk[0] / 1e9:.1f} GB; fits of block {args.block}: {sum(seconds.values()):.0f} s of CPU", flush=True)


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
