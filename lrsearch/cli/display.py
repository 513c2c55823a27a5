"""What the terminal shows: progress bars, the final table."""

import logging
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from lrsearch.cli.text import plain
from lrsearch.spec.progress import Progress
from lrsearch.workflows.layers import Layers
from lrsearch.workflows.result import Result

log = logging.getLogger("lrsearch")


class Bars(Progress):
    """One bar a stage, with the best so far and the time left; everything also goes to the log."""

    def __init__(self) -> None:
        self.rich = RichProgress(
            TextColumn("{task.description:<11}", markup=False), BarColumn(12), MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            # in a narrow terminal this wraps, nothing else shrinks
            TextColumn("{task.fields[best]}", markup=False, table_column=Column(no_wrap=False)),
        )
        self.task: TaskID | None = None

    def __enter__(self) -> "Bars":
        self.rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.rich.stop()

    def stage(self, title: str, total: int, done: int = 0) -> None:
        self.task = self.rich.add_task(title, total=total, completed=done, best="")
        log.info("%s: %d of %d done", title, done, total)

    def advance(self, best: str = "") -> None:
        self._update(1, best)

    def show(self, best: str) -> None:
        self._update(0, best)

    def _update(self, steps: int, best: str) -> None:
        if self.task is not None:
            self.rich.update(self.task, advance=steps, best=best)
            task = self.rich.tasks[self.task]
            log.info("%s: %d of %d done%s", task.description, task.completed, task.total, best and f": {best}")

    def note(self, text: str) -> None:
        self.rich.console.print(plain(f"note: {text}"), highlight=False, markup=False)
        log.info("%s", text)


def narrow_table(title: str) -> Table:
    """Narrow enough for 80 columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))


def shown(text: str) -> str:
    """A name as a cell of a table: neither markup nor commands to the terminal."""
    return escape(plain(text))


def show_result(result: Result) -> None:
    """The front and what the search added, as tables."""
    console = Console()
    table = narrow_table(f"Front of {shown(result.name)}")
    timed = "latency_ms" in result.front
    for heading in ("#", "source", "metric", "drop", "KL", "params", "MACs", "ms" if timed else "bytes", "S", "L", "L+S"):
        table.add_column(heading, justify="left" if heading == "source" else "right", no_wrap=True)
    rows = [*zip(map(str, result.front.index), result.front.to_dict("records"), strict=True)]
    for index, r in [*rows, *(("", r) for r in result.dense_int8.to_dict("records"))]:
        table.add_row(
            index, shown(r["source"]), f"{r['metric']:.2%}", f"{100 * r['metric_drop']:.2f}", f"{r['kl']:.4f}",
            f"{r['params_ratio']:.1%}", f"{r['macs_ratio']:.1%}",
            f"{r['latency_ms']:.3f}" if timed else f"{r['weight_bytes_ratio']:.1%}",
            *(str(r[f"{family}_layers"]) for family in ("sparse", "low_rank", "low_rank_sparse")),
        )
    console.print(table)
    added = narrow_table("Hypervolume by source")
    for heading in ("source", "plans", "hypervolume"):
        added.add_column(heading, justify="left" if heading == "source" else "right")
    for row in result.comparison.to_dict("records"):
        added.add_row(shown(row["source"]), str(row["plans"]), f"{row['hypervolume']:.4f}")
    console.print(added)
    n = len(result.trials)
    further = [f"{r['plans']} to rung {r['rung']} ({r['finetune_steps']} steps)" for r in result.rungs.to_dict("records")[1:]]
    console.print(
        f"{', '.join([f'{n} trials', *further])}.\nparams, MACs and bytes are relative to dense, drops in points on the same score data;\n"
        "S, L and L+S count the sparse, low-rank and low-rank+sparse layers.", highlight=False, soft_wrap=True,
    )
    console.print(plain(f"Study folder: {result.folder}"), soft_wrap=True, highlight=False, markup=False)


def layer_table(found: Layers) -> None:
    """The layers as a table."""
    table = narrow_table(f"{len(found.layers)} layers can be compressed")
    for heading in ("layer", "weight", "share", "groups", "positions", "choices"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in found.layers:
        shape = "×".join(map(str, layer.weight_shape))
        name, share = shown(", ".join(layer.names)), f"{found.shares[layer.name]:.1%}"
        table.add_row(name, shape, share, str(layer.groups), f"{layer.positions:,}", str(len(found.menus[layer.name])))
    console = Console()
    console.print(table)
    for name, reason in found.refused.items():
        left = f"left dense: {name} ({found.shares[name]:.1%} of the parameters): {reason}"
        console.print(plain(left), highlight=False, markup=False, soft_wrap=True)
