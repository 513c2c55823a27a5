"""Result: a study's front in the hand."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from torch import nn

from lrsearch.compress import artifact
from lrsearch.errors import ArtifactError
from lrsearch.measure.latency.table import LatencyTable
from lrsearch.report import frame
from lrsearch.report.figure import front_figure
from lrsearch.report.latency import prediction_figure, staircase_figure
from lrsearch.report.page import page
from lrsearch.search.latency import FRONT, TABLE
from lrsearch.search.records import Record
from lrsearch.search.recovered import recovered_records
from lrsearch.spec.cost import Cost
from lrsearch.spec.score import Score


class Result:
    """What a study found.

    Attributes:
        folder: the study folder.
        dense: cost of the dense model.
        baseline: score of the dense model.
        objectives: quality first, then costs.
    """

    def __init__(
        self, folder: Path, records: Sequence[Record], dense: Cost, baseline: Score, objectives: tuple[str, ...],
        base: nn.Module, name: str,
    ) -> None:
        self.folder, self.dense, self.baseline, self.objectives, self.name = folder, dense, baseline, objectives, name
        self._records, self._base = records, base

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per plan and recovered model; what was measured whole and is over a latency budget is not on the front."""
        trials, path = frame.trials_frame(self._records, self.dense, self.baseline, self.objectives), self.folder / FRONT
        recovered = recovered_records(self.folder, self._records)
        trials = frame.with_recovered(trials, recovered, self._records, self.dense, self.baseline, self.objectives)
        return frame.verified(trials, json.loads(path.read_text())) if self.latency and path.exists() else trials

    @cached_property
    def front(self) -> pd.DataFrame:
        """The non-dominated trials, and the recovered models that none dominates, largest first; the index is what :meth:`load` takes."""
        return frame.front_frame(self.trials, self.objectives)

    @cached_property
    def latency(self) -> LatencyTable | None:
        """The latency table, if the study has one."""
        return LatencyTable.load(self.folder / TABLE) if self.dense.latency_ms else None

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """Hypervolume of the search's own plans and of each control; reference point in ``.attrs``."""
        return frame.comparison(self._records, self.dense, self.objectives)

    @cached_property
    def rungs(self) -> pd.DataFrame:
        """How many plans reached each rung; rung 0 is without finetuning."""
        return frame.rungs_frame(self._records)

    def plot(self) -> go.Figure:
        """KL and task metric against every cost objective, controls named."""
        return front_figure(self.trials, self.objectives, f"{self.name}: quality against cost")

    def plot_latency(self) -> list[go.Figure]:
        """The staircases of the ranks, and the front's predicted against measured latency; empty without a table."""
        timed = "measured_ms" in self.front and bool(self.front.measured_ms.notna().any())
        stairs = [staircase_figure(self.latency)] if self.latency else []
        return [*stairs, *([prediction_figure(self.front)] if timed else [])]

    def load(self, index: int) -> nn.Module:
        """The compressed model in row ``index`` of :attr:`front`, in eval mode.

        Raises:
            ArtifactError: there is no such row, or its files are damaged.
        """
        if index not in self.front.index:
            raise ArtifactError(
                f"must be a row of the front, 0 to {len(self.front) - 1}", value=index, place="Result.load",
                remedy="Look at result.front.",
            )
        return artifact.load(self.folder / self.front.model[index], self._base)

    def write(self) -> None:
        """``front.csv``, ``front.parquet`` and ``front.html`` into the study folder."""
        self.front.to_csv(self.folder / "front.csv", index_label="index")
        self.front.to_parquet(self.folder / "front.parquet")
        html = page(self.name, self.plot(), self.front, self.comparison, self.rungs, self.plot_latency())
        (self.folder / "front.html").write_text(html, encoding="utf-8")
