"""What machines share, and one of them is struck at a random moment: the study is to end with every plan once, and nobody else is to end.

    python studies/benchmarks/machine_faults.py kill interrupt pause restart away [--repeats 20] [--seed 0] [--until 8] [--plans 12]
    python studies/benchmarks/machine_faults.py store disk node [--repeats 20] [--seed 0]

PostgreSQL is started on loopback, and four workers search. In the first line evaluations are replaced by a sleep of ``--seconds``, as in
machines.py; in the second they are real ones of a small network, with finetunes, models and artifacts in a folder that all have, each after
such a sleep.

kill: a worker is killed. interrupt: it is interrupted, as by Ctrl-C, where the grace period is the usual one of 120 s. pause: it is stopped
for longer than the grace period, 6 s here, and goes on. restart: the database is ended and started again. away: it is away for 30 s. store:
the folder of artifacts is away for up to 30 s. disk: that of one worker is full from then on (needs the right to mount). node: one of the
two nodes of a Ray is lost, which has a worker each.
"""

import argparse
import io
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machines import begun, forked, small_network, work
from optuna.trial import TrialState
from servers import Postgres, postgres

import lrsearch
from lrsearch import Budget, Progress
from lrsearch.cli.main import main as lrsearch_command
from lrsearch.compress import artifact
from lrsearch.search.records import CONTINUES, RUNG, SEARCH
from lrsearch.study import storage, turns
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.stored_trials import open_storage
from lrsearch.study.study_folder import StudyFolder

INTERVAL, GRACE = 1, 6  # seconds, instead of 15 and 120
AWAY = 30  # seconds that the database is away
WORKERS = 4
DISK = 64  # MiB


@dataclass
class Study:
    """What is struck.

    Attributes:
        server: the database.
        folder: has a folder for each worker, and the artifacts.
        children: the workers' processes.
        chance: seeded.
    """

    server: Postgres
    folder: Path
    children: list[int]
    chance: random.Random


def kill(study: Study) -> int:
    child = study.chance.choice(study.children)
    os.kill(child, signal.SIGKILL)
    return child


def interrupt(study: Study) -> int:
    child = study.chance.choice(study.children)
    os.kill(child, signal.SIGINT)
    return child


def pause(study: Study) -> None:
    child = study.chance.choice(study.children)
    os.kill(child, signal.SIGSTOP)
    time.sleep(GRACE + study.chance.uniform(2, 4))
    os.kill(child, signal.SIGCONT)


def restart(study: Study, least: float = 0, most: float = 2) -> None:
    study.server.stop(study.chance.choice(["fast", "immediate"]))
    time.sleep(study.chance.uniform(least, most))
    study.server.start()


def away(study: Study) -> None:
    restart(study, AWAY, AWAY)


def store(study: Study) -> None:
    blobs = study.folder / "blobs"
    blobs.rename(blobs.with_name("gone"))
    time.sleep(study.chance.uniform(1, AWAY))
    blobs.with_name("gone").rename(blobs)


def disk(study: Study) -> int:
    with suppress(OSError), open(study.folder / "0" / "large", "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    return study.children[0]


FAULTS: dict[str, Callable[[Study], int | None]] = {each.__name__: each for each in (kill, interrupt, pause, restart, away, store, disk)}
REAL = ("store", "disk")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("faults", nargs="+", choices=[*FAULTS, "node"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=8, help="seconds from when all search, in which a fault strikes")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--plans", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PGSSLMODE"] = "disable"  # processes that are forked may inherit a lock of OpenSSL that nobody lets go
    signal.signal(signal.SIGINT, signal.default_int_handler)
    usual, storage.INTERVAL = storage.GRACE, INTERVAL
    with postgres() as server:
        for seed in range(args.seed, args.seed + args.repeats):
            for fault in args.faults:
                storage.GRACE = turns.GRACE = usual if fault == "interrupt" else GRACE
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    if fault == "node":
                        node_lost(server, Path(folder), seed, args.until)
                    else:
                        struck(server, Path(folder), fault, seed, args)


def struck(server: Postgres, folder: Path, fault: str, seed: int, args: argparse.Namespace) -> None:
    """Let workers search while the fault strikes, and print what they come to."""
    chance, name, began = random.Random(f"{fault} {seed}"), f"{fault}-{seed}", time.monotonic()
    with small_disk(folder / "0") if fault == "disk" else nullcontext():
        children = real(server, folder, name, args) if fault in REAL else asleep(server, folder, name, args)
        while not all(folder.joinpath(f"{i}.joined").exists() or ended(child) for i, child in enumerate(children)):
            time.sleep(0.1)
        moment = chance.uniform(0, args.until)
        time.sleep(moment)
        dead = FAULTS[fault](Study(server, folder, children, chance))
        codes = {child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
        said = [folder.joinpath(f"{i}.said").read_text() for i in range(WORKERS)]
        searched, twice, found = counted(folder / "first")
        right = searched == args.plans and not twice and not found["RUNNING"] and not found["WAITING"]
        right &= all(code == 0 for child, code in codes.items() if child != dead)
        right &= fault not in REAL or whole(folder / "1")
    dropped = sum("given to another" in text for text in said)
    print(
        f"{fault}, seed {seed}, after {moment:.1f} s: {searched} of {args.plans} plans, {twice} twice, {found['FAIL']} given up, "
        f"{dropped} dropped, {sum(map(bool, codes.values()))} ended; {time.monotonic() - began:.0f} s: "
        f"{'right' if right else f'WRONG {dict(found)} {codes} {[text[-600:] for text in said]}'}", flush=True,
    )


def node_lost(server: Postgres, folder: Path, seed: int, until: float) -> None:
    """The same where Ray places two workers, and the node of one of them is lost."""
    from nodes import ENVIRONMENT, slow_study, two_nodes

    chance, name, began, plans, here = random.Random(f"node {seed}"), f"node-{seed}", time.monotonic(), 12, Path.cwd()
    os.environ |= {**ENVIRONMENT, "LRSEARCH_CACHE": str(folder / "cache")}
    slow_study(folder, plans)
    os.chdir(folder)
    moment = chance.uniform(0, until)

    def lose() -> None:
        while len(searching(server, name)) < 2:
            time.sleep(0.2)
        time.sleep(moment)
        cluster.remove_node(cluster.second, allow_graceful=False)

    said = io.StringIO()
    with two_nodes() as cluster, redirect_stdout(said):
        losing = threading.Thread(target=lose, daemon=True)
        losing.start()
        where = ["--storage", server.url, "--name", name, "--artifacts", "blobs", "--out", "here"]
        code = lrsearch_command(["search", "tiny.yaml", *where, "--ray", cluster.address, "--workers", "2"])
        losing.join()
    os.chdir(here)
    searched, twice, found = counted(folder / "here")
    right = code == 0 and searched == plans and not twice and not found["RUNNING"] and not found["WAITING"] and whole(folder / "here")
    print(
        f"node, seed {seed}, after {moment:.1f} s: {searched} of {plans} plans, {twice} twice, {found['FAIL']} given up, "
        f"{said.getvalue().count('is started again')} started again; {time.monotonic() - began:.0f} s: "
        f"{'right' if right else f'WRONG {dict(found)} {code} {said.getvalue()[-600:]}'}", flush=True,
    )


def searching(server: Postgres, name: str) -> set[str]:
    """The workers that have begun a trial of the study ``name``; none before there is one."""
    place = storage.Place(storage.read_url(server.url), name)
    study = storage.study_in(storage.opened(place), place)
    return {t.user_attrs["worker"] for t in study.get_trials(deepcopy=False) if "worker" in t.user_attrs} if study else set()


def counted(folder: Path) -> tuple[int, int, Counter[str]]:
    """How many plans of the search were scored, how many were scored twice at a rung, and how many trials are in each state."""
    trials = open_storage(StudyFolder(folder)).get_trials(deepcopy=False)
    done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    tried = {str((t.user_attrs.get("source"), t.user_attrs.get(RUNG), sorted(t.params.items()))) for t in done}
    plans = [t for t in done if t.user_attrs.get("source", SEARCH) == SEARCH and CONTINUES not in t.user_attrs]
    return len(plans), len(done) - len(tried), Counter(t.state.name for t in trials)


def ended(child: int) -> bool:
    """Whether it has; who it is waited for later is told still."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def asleep(server: Postgres, folder: Path, name: str, args: argparse.Namespace) -> list[int]:
    """Workers whose evaluations are a sleep."""
    search = begun(server, folder / "first", name, args.plans, "random")
    return [forked(folder / f"{i}", lambda own: work(search, server, own, name, args.seconds)) for i in range(WORKERS)]


def real(server: Postgres, folder: Path, name: str, args: argparse.Namespace) -> list[int]:
    """Workers whose evaluations are those of a small network, with finetunes."""
    model, (x, y) = small_network()
    os.environ["LRSEARCH_CACHE"] = str(folder / "cache")
    job: dict[str, Any] = {
        "model": model, "calibration": (x[:40], y[:40]), "score": (x[40:70], y[40:70]), "train": (x[70:], y[70:]), "name": name,
        "budget": Budget(params=0.6), "proxy": {"finetune": {"steps": 4, "rungs": 2, "batch": 10}}, "storage": server.url,
        "artifacts": str(folder / "blobs"), "search": {"trials": args.plans, "control_points": 1, "sampler": "random", "lowest": 0.1},
    }
    lrsearch.search(**{**job, "progress": Progress(), "out": folder / "first", "search": {**job["search"], "timeout": 0.001}})
    score = Evaluator.score

    def search(own: Path) -> None:
        def slowly(*call: object) -> object:
            own.with_suffix(".joined").touch()
            time.sleep(args.seconds)
            return score(*call)  # type: ignore[arg-type]

        Evaluator.score = slowly  # type: ignore[assignment, method-assign]
        lrsearch.search(**{**job, "out": own})

    return [forked(folder / f"{i}", search) for i in range(WORKERS)]


def whole(folder: Path) -> bool:
    """Whether all models of the front are there."""
    return all(artifact.whole(folder / model) for model in lrsearch.open(folder).front.model)


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of its own at ``place``."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


if __name__ == "__main__":
    main()
