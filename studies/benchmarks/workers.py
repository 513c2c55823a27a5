"""One process with all threads against a process of one thread for each, on the same study: minutes, and the front's hypervolume.

    python studies/benchmarks/workers.py STUDY [--workers 2] [--pairs 2] [--set …]

They take turns, one process first, with the profile in the cache: it is made before, and not timed. The hypervolume is that of log10 KL
and the ratio of the first cost, below KL 2 nats and ratio 1.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from lrsearch.spec.front import hypervolume
from lrsearch.spec.shipped import load_study


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    cost = load_study(args.study, args.set).objectives[1]
    command = [sys.executable, "-m", "lrsearch", "search", args.study, *(part for value in args.set for part in ("--set", value))]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--timeout", "0.001", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    minutes: dict[int, list[float]] = {1: [], args.workers: []}
    for _ in range(args.pairs):
        for processes, taken in minutes.items():
            took, volume = run(command, processes, args.workers // processes, cost)
            taken.append(took)
            print(f"{processes} of {args.workers // processes} threads: {took:.2f} minutes, hypervolume {volume:.4f}", flush=True)
    one, several = (statistics.median(taken) for taken in minutes.values())
    print(f"medians {one:.2f} and {several:.2f} minutes, {one / several:.2f} times as fast")


def run(command: list[str], processes: int, threads: int, cost: str) -> tuple[float, float]:
    """Minutes, and the hypervolume of the front."""
    with tempfile.TemporaryDirectory() as folder:
        began, environment = time.monotonic(), {**os.environ, "OMP_NUM_THREADS": str(threads)}
        started = [
            subprocess.Popen([*command, "--out", folder], env=environment, stdout=subprocess.DEVNULL) for _ in range(processes)
        ]
        codes = [process.wait() for process in started]
        assert not any(codes), codes
        took, front = (time.monotonic() - began) / 60, pd.read_csv(Path(folder) / "front.csv")
    points = np.c_[np.log10(np.maximum(front.kl, 1e-4)), front[f"{cost}_ratio"]]
    return took, hypervolume(points, (np.log10(2.0), 1.0))


if __name__ == "__main__":
    main()
