"""A profile made by one machine, and by several side by side: the time by the clock, and of the CPU.

    OMP_NUM_THREADS=1 python studies/benchmarks/profile_parts.py [--model vit_base_patch16_224] [--blocks 4] [--machines 1 2]
        [--part 100]

A machine is a process with one thread, a cache and a study folder of its own. They meet in a journal and a folder of artifacts. The
model has random weights and is calibrated on random images. ``--part`` are the seconds of fits that a machine takes at a time (PART in
lrsearch/profile/build.py). Printed are also the bytes of the fits that all machines have in the end, and whether all have the same.
"""

import argparse
import hashlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import timm
import torch
from large import space

from lrsearch import Budget, Progress
from lrsearch.profile import build as profiles
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.study.opening import open_search
from lrsearch.study.workers import working
from lrsearch.task.data import Examples


class Timed(Progress):
    """Remembers when the profile began."""

    def __init__(self) -> None:
        self.began = 0.0, 0.0

    def stage(self, title: str, _: int, __: int = 0) -> None:
        if title.startswith("Collecting") and self.began == (0.0, 0.0):
            self.began = time.monotonic(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--part", type=float, default=profiles.PART)
    args = parser.parse_args()
    for count in args.machines:
        with tempfile.TemporaryDirectory() as folder:
            side_by_side(Path(folder), count, args)


def side_by_side(folder: Path, count: int, args: argparse.Namespace) -> None:
    """Let ``count`` machines make one profile, and print what it took."""
    processes = [multiprocessing.get_context("spawn").Process(target=machine, args=(folder, i, args)) for i in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    told = [[float(x) for x in (folder / f"{i}.times").read_text().split()] for i in range(count)]
    began, ended, cpu, fitted = zip(*told, strict=True)
    files = [sorted((folder / f"cache{i}").rglob("*.safetensors")) for i in range(count)]
    digests = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in each] for each in files]
    same = "the same files" if all(each == digests[0] for each in digests) else "DIFFERENT FILES"
    print(
        f"{count} machines, parts of {args.part:.0f} s: {max(ended) - min(began):.0f} s, CPU {' + '.join(f'{x:.0f}' for x in cpu)} s, "
        f"layers fitted {' + '.join(f'{x:.0f}' for x in fitted)}; {sum(path.stat().st_size for path in files[0]) / 2**20:.0f} MiB, {same}; "
        f"load {os.getloadavg()[0]:.0f}",
        flush=True,
    )


def machine(folder: Path, index: int, args: argparse.Namespace) -> None:
    """One of the machines."""
    os.environ["LRSEARCH_CACHE"] = str(folder / f"cache{index}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(args.model, depth=args.blocks).eval()
    images = torch.randn(args.examples + 4, 3, 224, 224)
    labels, fitted, sweep, told = torch.arange(len(images)) % 1000, list[str](), profiles.sweep, Timed()
    calibration, score = (Examples((images[part], labels[part]), role, None, model) for part, role in (
        (slice(None, -4), "calibration"), (slice(-4, None), "score")))
    config = parse(StudyConfig, {"name": "parts", "budget": dict(Budget(params=0.6).items()), "space": space(args.steps)}, "benchmark")
    profiles.PART = args.part
    profiles.sweep = lambda weight, layer, *rest: fitted.append(layer.name) or sweep(weight, layer, *rest)
    own = folder / f"study{index}"
    with working(own, storage=f"journal:///{folder}/log", study="parts", artifacts=str(folder / "artifacts")) as workers:
        open_search(model, calibration, score, None, config, own, told, workers)
    began, computing = told.began
    times = began, time.monotonic(), time.process_time() - computing, len(fitted)
    (folder / f"{index}.times").write_text(" ".join(map(str, times)))


if __name__ == "__main__":
    main()
