"""What the terminal shows: progress bars, the final table."""

import json
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
    """The models that a person would choose from, what the search added, and what to type next."""
    console = Console()
    shown_table = result.table()
    print(plain(f"\nFront of {result.name}: {len(shown_table) - 1} of {len(result.front)} models\n"))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in shown_table:
        name = "" if heading.endswith(" %") else heading
        table.add_column(name, justify="left" if heading == "for" else "right", no_wrap=heading != "for")
    for row in shown_table.itertuples(index=False):
        table.add_row(*map(shown, row))
    console.print(table)
    print()
    further = [f"{r['plans']} to rung {r['rung']} ({r['finetune_steps']} steps)" for r in result.rungs.to_dict("records")[1:]]
    volumes = [f"{r['source']} {r['hypervolume']:.4f}" for r in result.comparison.to_dict("records") if r["plans"]]
    for line in (
        *result.notes, f"Hypervolume: {', '.join(volumes)}.", f"{', '.join([f'{len(result.trials)} trials', *further])}.",
        f"Study folder: {result.folder}; {result.page.name} shows all.", *(f"Next: {step}" for step in result.next_steps()),
    ):
        console.print(plain(line), soft_wrap=True, highlight=False, markup=False)


def print_front(result: Result) -> None:
    """The same as JSON: the dense model, the whole front, and the rows to choose from."""
    front = json.loads(result.front.to_json(orient="records"))
    print(json.dumps({
        "study": result.name, "folder": str(result.folder), "objectives": list(result.objectives), "dense": result.dense.to_dict(),
        "baseline": result.baseline.to_dict(), "choices": {str(i): why for i, why in result.choices.rows.why.items()}, "front": front,
    }, indent=1))


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
