"""What the terminal shows: progress bars, the final table."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from lrsearch.cli.text import plain
from lrsearch.report.certificate import Certificate
from lrsearch.spec.progress import Lines, LoggedProgress, Progress
from lrsearch.workflows.layers import Layers
from lrsearch.workflows.result import Result


class Bars(LoggedProgress):
    """One bar a stage, with the best so far and the time left; everything also goes to the log."""

    def __init__(self) -> None:
        super().__init__()
        self.rich = RichProgress(
            TextColumn("{task.description:<21}", markup=False), BarColumn(12), MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False), TimeElapsedColumn(),
            # in a narrow terminal this wraps, nothing else shrinks
            TextColumn("{task.fields[best]}", markup=False, table_column=Column(no_wrap=False)),
        )
        self.task: TaskID | None = None
        self._latest: list[tuple[str, TaskID]] = []

    def __enter__(self) -> "Bars":
        self.rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.rich.stop()

    def stage(self, title: str, total: int, done: int = 0) -> None:
        super().stage(title, total, done)
        again = next((task for before, task in self._latest[-2:] if before == title), None)  # two stages take turns
        if again is None:
            self.task = self.rich.add_task(title, total=total, best="", left="")
            self._latest.append((title, self.task))
        else:
            self.task = again
            self.rich.reset(again, total=total, best="", left="")
        self.rich.update(self.task, completed=done)  # which ends the clock of a stage that has nothing to do

    def advance(self, best: str = "") -> None:
        super().advance(best)
        self._update()

    def show(self, best: str) -> None:
        super().show(best)
        self._update()

    def _update(self) -> None:
        if self.task is not None:
            self.rich.update(self.task, completed=self.done, best=self.best, left=self.rest)

    def note(self, text: str) -> None:
        super().note(text)
        self.rich.console.print(plain(f"note: {text}"), highlight=False, markup=False)


@contextmanager
def watched() -> Iterator[Progress]:
    """Bars in a terminal; where output is redirected a line for each stage, and now and then one between."""
    if not sys.stdout.isatty():
        yield Lines(sys.stdout)
        return
    with Bars() as bars:
        yield bars


def narrow_table(title: str) -> Table:
    """Narrow enough for 80 columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))


def shown(text: str) -> str:
    """A name as a cell of a table: neither markup nor commands to the terminal."""
    return escape(plain(text))


def show_result(result: Result, study: str | None = None) -> None:
    """The models that a person would choose from, what the search added, and what to type next.

    Args:
        study: the study file, if it is known.
    """
    console = Console()
    shown_table = result.table()
    print(plain(f"\nFront of {result.name}: {len(shown_table) - 1} of {len(result.front)} models\n"))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in map(str, shown_table):
        name = "" if heading.endswith(" %") else heading
        table.add_column(name, justify="left" if heading == "for" else "right", no_wrap=heading != "for")
    for row in shown_table.itertuples(index=False):
        table.add_row(*map(shown, row))
    console.print(table)
    print()
    further = [f"{r['plans']} of them finetuned for {r['finetune_steps']} steps" for r in result.rungs.to_dict("records")[1:]]
    volumes = [f"{r['source']} {r['hypervolume']:.3f}" for r in result.comparison.to_dict("records") if r["plans"]]
    for line in (
        *result.notes, f"{', '.join([f'{len(result.trials)} plans tried', *further])}.",
        f"Hypervolume of the plans of each source, more is better: {', '.join(volumes)}.",
        f"Study folder: {result.place}; {result.page.name} shows all.", *(f"Next: {s}" for s in result.next_steps(study=study or "FILE")),
    ):
        console.print(plain(line), soft_wrap=True, highlight=False, markup=False)


def print_front(result: Result) -> None:
    """The same as JSON: the dense model, the whole front, and the rows to choose from."""
    front = json.loads(result.front.to_json(orient="records"))
    print(json.dumps({
        "study": result.name, "folder": str(result.folder), "objectives": list(result.objectives), "dense": result.dense.to_dict(),
        "baseline": result.baseline.to_dict(), "choices": {str(i): why for i, why in result.choices.rows.why.items()}, "front": front,
    }, indent=1))


def show_certificate(certificate: Certificate) -> None:
    """As tables in a terminal; as Markdown where output is redirected."""
    text = plain(certificate.markdown())
    if sys.stdout.isatty():
        Console().print(Markdown(text, hyperlinks=False))
    else:
        print(text)


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
