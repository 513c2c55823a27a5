"""Kill a search with SIGKILL at ten random moments, resume it each time, and check that nothing is lost.

    python studies/benchmarks/kill.py STUDY OUT [--workers 1] [--kills 10] [--longest 20] [SEARCH OPTIONS …]

Of several workers one at random is killed, while the others go on, and started again. After each kill: every trial finished before
is still there, unchanged. At the end: the front is whole, each of its models loads, and each plan and rung was finished once, but
for what controls share.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState

import lrsearch
from lrsearch.spec.shipped import load_study
from lrsearch.workflows.materials import Materials


def finished(folder: Path) -> dict[int, tuple[object, ...]]:
    """Trial number → its state, values, and plan and rung, of every finished trial in the storage."""
    if not (folder / "study.db").exists():
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")
    except KeyError:
        return {}
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.get_trials(states=done)
    return {t.number: (t.state, t.values, f"{t.user_attrs.get('rung', 0)} {t.user_attrs.get('plan')}") for t in trials}


def begun(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds a run lives at most before it is killed")
    args, rest = parser.parse_known_args()
    command = [sys.executable, "-m", "lrsearch.cli.main", "search", args.study, "--out", str(args.out), *rest]
    moments = random.Random(0)
    before: dict[int, tuple[object, ...]] = {}
    workers: list[subprocess.Popen[bytes]] = []
    for kill in range(args.kills):
        delay = moments.uniform(4.0, args.longest)
        workers += [begun(command) for _ in range(args.workers - len(workers))]
        time.sleep(delay)
        process = workers.pop(moments.randrange(args.workers))
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = finished(args.out)
        lost = [n for n, trial in before.items() if after.get(n) != trial]
        print(f"kill {kill + 1} after {delay:.1f} s (alive: {alive}): {len(after)} finished, lost {lost}", flush=True)
        assert not lost
        before = after
    codes = [worker.wait() for worker in [*workers, begun(command)]]
    print(f"exit codes of those that were not killed: {codes}")
    final = finished(args.out)
    front = pd.read_csv(args.out / "front.csv")
    folders = {p.name for p in (args.out / "models").iterdir()}
    base = Materials.of_study(load_study(args.study)).model
    loaded = [lrsearch.load(args.out / m, base) for m in front.model]
    plans = [plan for _, _, plan in final.values()]
    print(f"end: {len(final)} finished, {len(front)} on the front, {len(loaded)} models load")
    print(f"models on disk are those of the front: {folders == {Path(m).name for m in front.model}}")
    print(f"lost: {[n for n, t in before.items() if final.get(n) != t]}; distinct plans and rungs {len(set(plans))} of {len(plans)}")


if __name__ == "__main__":
    main()
