"""Workers on one database, with every evaluation replaced by a sleep: trials a minute, and where the rest of the time goes.

    python studies/benchmarks/machines.py [--workers 8 32] [--seconds 1] [--plans 10] [--sampler random]

PostgreSQL is started on loopback. Deciding, storing and reading are the real ones; what a plan scores is made up from its cost. Each worker
is a process with a folder of its own; ``--plans`` is per worker.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from servers import Postgres, postgres  # noqa: E402

from lrsearch import Budget, Progress  # noqa: E402
from lrsearch.search.records import PLAN, SEARCH, TWIN, Record  # noqa: E402
from lrsearch.spec.config import StudyConfig  # noqa: E402
from lrsearch.spec.cost import CostModel  # noqa: E402
from lrsearch.spec.parse import parse  # noqa: E402
from lrsearch.spec.score import Score  # noqa: E402
from lrsearch.study.loop import Search  # noqa: E402
from lrsearch.study.opening import open_search  # noqa: E402
from lrsearch.study.stored_trials import open_storage  # noqa: E402
from lrsearch.study.study_folder import StudyFolder  # noqa: E402
from lrsearch.study.turns import DatabaseTurn  # noqa: E402
from lrsearch.study.workers import working  # noqa: E402
from lrsearch.task.data import Examples  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--sampler", default="random")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PGSSLMODE"] = "disable"  # processes that are forked may inherit a lock of OpenSSL that nobody lets go
    with postgres() as server:
        for count in args.workers:
            with tempfile.TemporaryDirectory() as folder:
                scaling(server, Path(folder), count, args)


def scaling(server: Postgres, folder: Path, count: int, args: argparse.Namespace) -> None:
    """Let ``count`` workers search, and print what it took."""
    name = f"scaling-{count}"
    search = begun(server, folder / "first", name, args.plans * count, args.sampler)
    began = time.monotonic()
    children = [forked(folder / f"{i}", lambda own: work(search, server, own, name, args.seconds)) for i in range(count)]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0, (folder / f"{children.index(child)}.said").read_text()
    took, times = time.monotonic() - began, [[float(x) for x in (folder / f"{i}.times").read_text().split()] for i in range(count)]
    trials, twice, equal = counted(folder / "first")
    waiting, having, reading, whole, computing, statements = (sum(column) for column in zip(*times, strict=True))
    shares = {"evaluating": len(trials) * args.seconds, "waiting for turns": waiting, "in turns": having, "reading outside": reading}
    print(
        f"{count} workers: {len(trials)} trials in {took:.1f} s, {60 * len(trials) / took:.0f} a minute, {60 * count / args.seconds:.0f} "
        f"without storage; of the workers' time {', '.join(f'{part / whole:.0%} {what}' for what, part in shares.items())}; "
        f"in turns a trial takes {1000 * having / len(trials):.0f} ms, {1000 * computing / len(trials):.0f} ms of the worker's own CPU, "
        f"{statements / len(trials):.0f} statements; load {os.getloadavg()[0]:.0f}; "
        f"{twice} proposals scored twice, {equal} came to the plan of another",
        flush=True,
    )


def begun(server: Postgres, folder: Path, name: str, plans: int, sampler: str) -> Search:
    """A study of a small network in the database; its connections are closed, so that it may be forked."""
    model, (x, y) = small_network()
    calibration, score = (Examples((x[part], y[part]), role, None, model) for part, role in (
        (slice(40), "calibration"), (slice(40, None), "score")))
    search = {"trials": plans, "control_points": 1, "sampler": sampler, "lowest": 0.1}
    config = parse(StudyConfig, {"name": name, "budget": dict(Budget(params=0.6).items()), "search": search}, "benchmark")
    with working(folder, storage=server.url, study=name) as workers:
        return open_search(model, calibration, score, None, config, folder, Progress(), workers)


def small_network() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A model, and 90 inputs and labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    return model, (torch.randn(90, 12), torch.arange(90) % 3)


def forked(folder: Path, does: Callable[[Path], object]) -> int:
    """The process of another worker, which ``does`` what it does in ``folder``; what it says is in a file beside."""
    if child := os.fork():
        return child
    code = 1
    try:
        with open(folder.with_suffix(".said"), "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        does(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Said(Progress):
    """Prints its notes."""

    def note(self, text: str) -> None:
        print(text, flush=True)


def work(search: Search, server: Postgres, folder: Path, name: str, seconds: float) -> None:
    """Search until nothing is left, and write how long that took."""
    with working(folder, Said().note, server.url, name) as workers:
        mine: Any = workers.turn.do(lambda: replace(search, workers=workers, folder=StudyFolder(folder), progress=Said()))
        mine._runner, mine._models, mine._latency = Sleeper(seconds, search.proposals.decoder.costs), Nothing(), Nothing()
        folder.with_suffix(".joined").touch()
        clock, began = Clock(workers), time.monotonic()
        mine.run()
        whole = time.monotonic() - began
    folder.with_suffix(".times").write_text(f"{clock.waiting} {clock.having} {clock.reading} {whole} {clock.computing} {clock.statements}")


class Sleeper:
    """Instead of the trial runner: sleeps, and makes up a score from the plan's cost."""

    def __init__(self, seconds: float, costs: CostModel) -> None:
        self.seconds, self.costs = seconds, costs

    def run(self, trial: Any, plan: Any, _: Any) -> tuple[Record, None]:
        time.sleep(self.seconds)
        source, cost = trial.user_attrs.get("source", SEARCH), self.costs(plan)
        score = Score(1 / cost.params, 1.0, 0.0, 0, False)
        return Record(trial.number, source, plan, cost, (score,), True, f"models/{trial.number:04d}"), None


class Nothing:
    """Instead of the models of the front, and of its latency."""

    verifies = False

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


class Clock:
    """How long a worker waits for turns, has them, and reads outside of them; of the one worker in this process."""

    def __init__(self, workers: Any) -> None:
        self.waiting = self.having = self.reading = self.computing = self._since = self._computed = 0.0
        self.statements = 0
        enter, leave, patiently = DatabaseTurn.__enter__, DatabaseTurn.__exit__, DatabaseTurn.patiently

        def entered(turn: DatabaseTurn) -> None:
            began, outer = time.monotonic(), not turn._depth
            enter(turn)
            if outer:
                self._since, self._computed = time.monotonic(), time.process_time()
                self.waiting += self._since - began

        def left(turn: DatabaseTurn, *error: Any) -> None:
            leave(turn, *error)
            if not turn._depth:
                self.having += time.monotonic() - self._since
                self.computing += time.process_time() - self._computed

        def read(turn: DatabaseTurn, call: Callable[[], Any]) -> Any:
            began, turns = time.monotonic(), self.waiting + self.having
            try:
                return patiently(turn, call)
            finally:
                self.reading += 0.0 if turn._depth else time.monotonic() - began - (self.waiting + self.having - turns)

        def executed(turn: DatabaseTurn, *_: Any) -> None:
            self.statements += turn._depth > 0

        event.listen(workers.turn.storage.engine, "before_cursor_execute", lambda *_: executed(workers.turn))
        DatabaseTurn.__enter__, DatabaseTurn.__exit__, DatabaseTurn.patiently = entered, left, read  # type: ignore[assignment]


def counted(folder: Path) -> tuple[list[FrozenTrial], int, int]:
    """The finished trials, how many proposals were scored twice, and how many plans that two proposals came to."""
    done = [t for t in open_storage(StudyFolder(folder)).get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    scored = [t for t in done if TWIN not in t.user_attrs]
    proposals = Counter(str((t.user_attrs.get("source"), sorted(t.params.items()))) for t in done)
    plans = Counter(str(t.user_attrs[PLAN]) for t in scored)
    return done, len(done) - len(proposals), len(scored) - len(plans)


if __name__ == "__main__":
    main()
