"""LatencyTable: what was measured, under which conditions, and what it says of a plan."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from lrsearch.errors import LatencyError
from lrsearch.latency.micro_models import Calls
from lrsearch.latency.runner import Timing, same_cpu
from lrsearch.spec.atomic import read_sealed, write_json
from lrsearch.spec.html_table import html_table
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.unread import drops_columns

GRAIN = 2**20  # parts of a millisecond that times are rounded to, so that their sums are exact
LONGEST = 3.6e6  # milliseconds; no call of a layer takes an hour
FAR = 0.25  # relative error of whole models beyond which a plan predicted at 0.8 of the dense model's latency may take all of it
MOST_SHOWN = 15  # layers in a notebook
PLAIN = re.compile(r", (stride 1x1|padding 0-0-0-0 constant|dilation 1x1|groups 1)(?=,|$)")  # what goes without saying of a layer
DENSE = str(LayerPlan())
_REMEDY = "Measure it again: lrsearch profile STUDY --latency."


def grained(ms: float) -> float:
    """``ms`` in whole 2⁻²⁰ ms."""
    return round(ms * GRAIN) / GRAIN


def fed_key(choice: LayerPlan) -> str:
    """What a table calls a layer that drops columns, on the channels alone that it reads."""
    return f"{choice}, fed"


@dataclass(frozen=True)
class Conditions:
    """Where and how a table was measured; ``load`` is the mean number of processes that wanted to run, in the minute before.

    ``dtype`` is what layers compute in: the type of the weights, or ``int8`` where they were quantised before they were timed.
    """

    backend: str
    version: str
    threads: int
    batch: int
    dtype: str
    cpu: str
    load: float = -1.0
    date: str = ""


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of every distinct layer alone, in every form its choices give it.

    Attributes:
        conditions: where and how it was measured.
        architecture: a digest of what the model computes.
        dense: the whole dense model, deployed; beside a few other whole models where these gave ``scale``.
        entries: signature → choice as executed (see :attr:`LayerPlan.executed`), or :func:`fed_key` of one → timing.
        scale: what layers save in a whole model, as a share of what they save alone.
        stray: standard deviation of the relative error that is left, over a few whole models.
    """

    conditions: Conditions
    architecture: str
    dense: Timing
    entries: Mapping[str, Mapping[str, Timing]]
    scale: float = 1.0
    stray: float = 0.0

    def __repr__(self) -> str:
        c = self.conditions
        where = f"{c.backend} {c.version}, threads {c.threads}, batch {c.batch}, {c.cpu}, {c.date}"
        return f"LatencyTable: {len(self.entries)} distinct layers, dense model {self.dense.ms:.3f} ms; {where}"

    @property
    def doubt(self) -> str:
        """That its predictions tell little, where whole models stray far from them; else nothing."""
        told = f"whole models stray by {self.stray:.0%} from what their layers say (load {self.conditions.load} when they were timed)"
        return f"{told}: do not trust predicted latencies; search again in a new folder when the machine is idle" * (self.stray > FAR)

    def _repr_html_(self) -> str:
        """The distinct layers, the slowest first, each with its fastest form."""
        def fastest(signature: str) -> tuple[str, float]:
            return min(((choice, timing.ms) for choice, timing in self.entries[signature].items()), key=lambda pair: pair[1])

        slowest = sorted(self.entries, key=lambda s: -self.entries[s][DENSE].ms)
        rows = [
            (f"{self.entries[s][DENSE].ms:.4f}", f"{fastest(s)[1]:.4f}", fastest(s)[0], PLAIN.sub("", s))
            for s in slowest[:MOST_SHOWN]
        ]
        left = f"<p>… and {len(slowest) - MOST_SHOWN} faster ones.</p>" if len(slowest) > MOST_SHOWN else ""
        return f"<p>{escape(repr(self))}</p>{html_table(('dense, ms', 'fastest, ms', 'as', 'layer'), rows)}{left}"

    def ms(self, calls: Sequence[str], plan: LayerPlan, chain: str | None = None) -> float:
        """Milliseconds of a layer's ``calls`` under ``plan`` in a whole model: the dense layer's, less what is saved; never
        more, as it can also be deployed as a dense layer. Rounded to whole 2⁻²⁰ ms (a nanosecond), so that sums are exact.

        Args:
            chain: signature of the layer with what alone feeds it, whose savings count here too where the layer drops columns, so
                that it may be less than nothing.

        Raises:
            LatencyError: it was not measured.
        """
        dense = self.alone(calls, DENSE)
        if chain and drops_columns(plan):
            return grained(dense - self.scale * self.saved_in_chain(chain, plan))
        return grained(max(0.0, dense - self.scale * max(0.0, dense - self.alone(calls, str(plan.executed)))))

    def saved_in_chain(self, chain: str, plan: LayerPlan) -> float:
        """Milliseconds that a layer which drops columns saves with what feeds it, as they were measured.

        Raises:
            LatencyError: they were not.
        """
        return self.alone([chain], DENSE) - self.alone([chain], fed_key(plan))

    def alone(self, calls: Sequence[str], key: str) -> float:
        """Milliseconds as they were measured.

        Raises:
            LatencyError: they were not.
        """
        try:
            return sum(self.entries[each][key].ms for each in calls)
        except KeyError as error:
            raise LatencyError(
                "the table must have every choice of every layer", value=f"no entry {error}", place=key, remedy=_REMEDY,
            ) from None

    def merged(self, calls: Calls, plan: Plan, chains: Collection[str] = ()) -> list[str]:
        """Names of the layers that run fastest as one dense layer; columns that spare what feeds them do not."""
        alone = {n: p for n, p in plan.layers.items() if n not in chains or not drops_columns(p)}
        return [n for n, p in alone.items() if self.alone(calls[n], str(p.executed)) >= self.alone(calls[n], DENSE)]

    def layers(
        self, calls: Calls, menus: Mapping[str, Sequence[LayerPlan]], chains: Mapping[str, str] | None = None,
    ) -> dict[str, dict[LayerPlan, float]]:
        """Layer name → choice → milliseconds; ``chains``: layer name → signature of the layer with what alone feeds it."""
        return {name: {plan: self.ms(calls[name], plan, (chains or {}).get(name)) for plan in menu} for name, menu in menus.items()}

    @property
    def identity(self) -> str:
        """Tells one measurement from another."""
        return f"{self.architecture}, {self.conditions.backend} on {self.conditions.cpu}, {self.conditions.date}"

    @cached_property
    def dense_ms(self) -> float:
        """Milliseconds of the whole dense model, in whole 2⁻²⁰ ms."""
        return grained(self.dense.ms)

    def save(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = {s: {c: t._asdict() for c, t in each.items()} for s, each in self.entries.items()}
        about = {"conditions": asdict(self.conditions), "architecture": self.architecture, "scale": self.scale, "stray": self.stray}
        whole = {**about, "dense": self.dense._asdict(), "entries": entries}
        write_json(path, whole)

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Inverse of :meth:`save`.

        Raises:
            LatencyError: the file is missing or damaged.
        """
        try:
            data = read_sealed(path)
            entries = {s: {c: Timing(**t) for c, t in each.items()} for s, each in data["entries"].items()}
            conditions, dense = Conditions(**data["conditions"]), Timing(**data["dense"])
            table = cls(conditions, data["architecture"], dense, entries, data["scale"], data["stray"])
            table._refuse_implausible()
            return table
        except OSError as error:
            raise LatencyError("the file must be readable", value=error.strerror or "?", place=str(path), remedy=_REMEDY) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LatencyError("must be a table as lrsearch wrote it", value=repr(error), place=str(path), remedy=_REMEDY) from None

    def _refuse_implausible(self) -> None:
        """Check that every number may be a measurement.

        Raises:
            ValueError: one may not.
        """
        timings = [("dense", self.dense), *((f"{s} {c}", t) for s, each in self.entries.items() for c, t in each.items())]
        for name, timing in timings:
            for field, value in timing._asdict().items():
                if not (math.isfinite(value) and 0 < value < LONGEST):
                    raise ValueError(f"{name}: {field} {value}")
        for field, value in (("scale", self.scale), ("stray", self.stray)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field} {value}")

    def refuse_others(self, architecture: str, wanted: Conditions, place: str) -> None:
        """Check that the table says something about a model under the conditions ``wanted``.

        Args:
            architecture: of the model.
            wanted: the conditions here and now, or those asked for by the name of a processor; without a version if any will do.

        Raises:
            LatencyError: it was measured on another machine, under other conditions or for another model.
        """
        mine = self.conditions
        if not same_cpu(mine.cpu, wanted.cpu):
            raise LatencyError(
                "a table of another machine must be asked for by name", value=f"{mine.cpu}, not {wanted.cpu}", place=place,
                remedy=f"Measure on this machine, or add latency.cpu: {json.dumps(mine.cpu)} to search for that one.",
            )
        for field in ("backend", "threads", "batch", "dtype", *(("version",) if wanted.version else ())):
            if getattr(mine, field) != getattr(wanted, field):
                raise LatencyError(
                    f"the table must be of the {field} asked for", value=f"{getattr(mine, field)}, not {getattr(wanted, field)}",
                    place=place, remedy=_REMEDY,
                )
        if self.architecture != architecture:
            raise LatencyError("the table must be of this model", value=self.architecture, place=place, remedy=_REMEDY)
