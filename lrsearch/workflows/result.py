"""Result: a study's front in the hand."""

import html
import io
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from torch import nn

from lrsearch.errors import ArtifactError, ConfigError, LrsearchError, StudyError
from lrsearch.latency.table import LatencyTable
from lrsearch.report import frame
from lrsearch.report.certificate import Certificate
from lrsearch.report.choices import Choices, choices
from lrsearch.report.fidelity import fidelity_figures
from lrsearch.report.figure import ShownFigure, front_figure
from lrsearch.report.header import header
from lrsearch.report.latency import prediction_figure, staircase_figure
from lrsearch.report.page import page
from lrsearch.report.page_data import PageData
from lrsearch.report.picture import front_picture
from lrsearch.report.summary import choice_table, notes
from lrsearch.search.records import Record
from lrsearch.spec.atomic import write_whole
from lrsearch.spec.config import DeployConfig, Precision, StudyConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.parse import parse
from lrsearch.spec.progress import Progress
from lrsearch.spec.score import Chance, Score
from lrsearch.spec.units import divergence_name
from lrsearch.study import space_file
from lrsearch.study.front_conditions import choose
from lrsearch.study.identity import read_config, read_made
from lrsearch.study.latency import dense_int8, measured_whole, over_budget, over_by
from lrsearch.study.optuna_view import OptunaStudy, resulting_study
from lrsearch.study.process_state import restoring_process_state
from lrsearch.study.recovered import read_finished, recovered_records
from lrsearch.study.stored_trials import finish_times, open_storage
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import alone
from lrsearch.task.architecture import NEEDS_BASE
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.workflows.from_folder import OWN, code_in
from lrsearch.workflows.load import load
from lrsearch.workflows.materials import Materials
from lrsearch.workflows.steps.export_rows import export_member, export_rows


class Result:
    """What a study found.

    Attributes:
        folder: the study folder.
        dense: cost of the dense model.
        baseline: score of the dense model.
        objectives: quality first, then costs.
        unit: of the divergence.
    """

    def __init__(
        self, folder: Path, records: Sequence[Record], dense: Cost, baseline: Score, config: StudyConfig,
        base: nn.Module | None, scoring: Examples | None, task: Task | None = None, chance: Chance | None = None,
        calibration: Examples | None = None, unit: str = "",
    ) -> None:
        self.folder, self.dense, self.baseline = folder.absolute(), dense, baseline  # the working directory may change
        self.objectives, self.name, self._study = config.objectives, config.name, StudyFolder(self.folder)
        self._records, self._config, self._base, self._scoring, self._task = records, config, base, scoring, task
        self._calibration = calibration
        self._chance, self.unit = chance, unit

    @classmethod
    def of(cls, folder: Path, model: nn.Module | None = None) -> "Result":
        """That of a finished, stopped or running study; see :func:`lrsearch.open`."""
        config, found = read_config(StudyFolder(folder)), read_finished(StudyFolder(folder))
        return cls(folder, found.records, found.dense, found.baseline, config, model, None, chance=found.chance, unit=found.unit)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per plan and recovered model; what was measured whole and is over a latency budget is not on the front."""
        over, measured = over_budget(self._records, self._study), measured_whole(self._study)
        recovered = recovered_records(self._study, [r for r in self._records if r.number not in over])
        return frame.study_frame(self._records, recovered, self.dense, self.baseline, self.objectives, over, measured, self._chance)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The non-dominated trials, and the recovered models that none dominates, largest first; the index is what :meth:`load` takes."""
        return frame.front_frame(self.trials, self.objectives, self.folder)

    @cached_property
    def choices(self) -> Choices:
        """The rows of :attr:`front` that a person would choose from, and why; see :mod:`lrsearch.report.choices`."""
        return choices(self.front, self.objectives, self.baseline)

    def table(self) -> pd.DataFrame:
        """The dense model and :attr:`choices` as text."""
        return choice_table(self.choices, self.dense, self.baseline, self.objectives, self.unit)

    @property
    def notes(self) -> list[str]:
        """What a reader of :meth:`table` should know."""
        return [*notes(self.choices, len(self.front), self.unit), *(_told(row, self.unit) for row in self.dense_int8.to_dict("records"))]

    @property
    def place(self) -> Path:
        """:attr:`folder` as it is called from the working directory."""
        return self.folder.relative_to(Path.cwd()) if self.folder.is_relative_to(Path.cwd()) else self.folder

    @property
    def page(self) -> Path:
        """The report, as :meth:`write` left it."""
        return self._study.page

    def next_steps(self, python: bool = False, study: str = "FILE") -> list[str]:
        """What to type next, in a shell or in Python; nothing for an empty front.

        Args:
            study: the study file, to be named again where model or data are code.
        """
        index = self.choices.first
        if index is None:
            return []
        own = {dotted for _, dotted in code_in(self._config.model_dump(mode="json"))} <= OWN
        if python or not (self._config.model and self._config.data):
            if self._base is not None and self._scoring is not None:  # as a search returns it
                return [f"result.load({index})", f"result.export(index={index})"]
            built = own and self._config.model
            loaded = f"{'result' if built or self._base is not None else self._with_model()}.load({index})"
            return [loaded, f'lrsearch.export("{self.place}", index={index}{"" if built else ", model=model, score=score"})']
        return [f"lrsearch export {shlex.quote(str(self.place))}{'' if own else f' --study {shlex.quote(study)}'} --index {index}"]

    def _with_model(self) -> str:
        """How the study is opened so that its models can be loaded."""
        return f'lrsearch.open("{self.place}", model=model)'

    def __repr__(self) -> str:
        lines = [f"Result of {self.name}: front of {len(self.front)} from {len(self.trials)} plans, in {self.place}"]
        return "\n".join([*lines, *self.table().to_string(index=False).splitlines(), *self.notes])

    def _repr_html_(self) -> str:
        steps = "".join(f"<br><code>{html.escape(step)}</code>" for step in self.next_steps(python=True))
        told = "<br>".join(map(html.escape, self.notes))
        return (
            f"<h4>{html.escape(self.name)}: front of {len(self.front)} from {len(self.trials)} plans</h4>"
            f"{front_picture(self.trials, self.objectives, self.name, self.unit)}{self.table().to_html(index=False, border=0)}"
            f"<small>{told}</small><p>Next:{steps}<br><code>result.plot()</code>, "
            f"or open {html.escape(str(self.place / self.page.name))}</p>"
        )

    @cached_property
    def latency(self) -> LatencyTable | None:
        """The latency table, if the study has one."""
        return LatencyTable.load(self._study.latency) if self.dense.latency_ms else None

    @cached_property
    def dense_int8(self) -> pd.DataFrame:
        """What the dense model takes and scores in int8, as a row like those of :attr:`trials`; no row without latencies."""
        return frame.dense_int8_frame(dense_int8(self._study), self.dense, self.baseline)

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """Hypervolume of the search's own plans and of each control; reference point in ``.attrs``."""
        return frame.comparison(self._records, self.dense, self.objectives)

    @cached_property
    def rungs(self) -> pd.DataFrame:
        """How many plans reached each rung; rung 0 is without finetuning."""
        return frame.rungs_frame(self._records)

    @cached_property
    @restoring_process_state()
    def study(self) -> OptunaStudy:
        """The finished plans over the ranks and densities that they came to, for Optuna's own plots and importances.

        What was measured whole and is over a latency budget is infeasible there.

        Example:
            >>> optuna.visualization.plot_param_importances(result.study, target=lambda t: t.values[0], target_name="divergence")
        """
        late = over_by(self._study, Budget(**self._config.budget))
        return resulting_study(self._records, space_file.load(self._study).costs.layers, self.objectives, late)

    def plot(self) -> go.Figure:
        """Divergence and task metric against every cost objective, controls named."""
        shown = pd.concat([self.trials, self.dense_int8]) if len(self.dense_int8) else self.trials
        figure = front_figure(shown, self.objectives, f"{self.name}: quality against cost", self.unit)
        return ShownFigure(figure, front_picture(self.trials, self.objectives, self.name, self.unit))

    def plot_latency(self) -> list[go.Figure]:
        """The staircases of the ranks, and the front's predicted against measured latency; empty without a table."""
        timed = self.latency is not None and "measured_ms_ratio" in self.front and bool(self.front.measured_ms_ratio.notna().any())
        stairs = [staircase_figure(self.latency)] if self.latency else []
        return [*stairs, *([prediction_figure(self.front)] if timed else [])]

    def load(self, index: int, *, merged: bool = False) -> nn.Module:
        """The compressed model in row ``index`` of :attr:`front`, in eval mode; ``merged`` as :func:`lrsearch.load` has it.

        Raises:
            ArtifactError: there is no such row, or its files are damaged.
        """
        if index not in self.front.index:
            raise ArtifactError(
                f"must be a row of the front, 0 to {len(self.front) - 1}", value=index, place="Result.load",
                remedy="Look at result.front.",
            )
        try:
            return load(self.folder / self.front.model[index], self._base, merged=merged)
        except ArtifactError as error:
            remedy = f"Give the dense model: {self._with_model()}.load({index})." if error.remedy == NEEDS_BASE else error.remedy
            raise ArtifactError(error.rule, value=error.value, place=error.place, remedy=remedy) from None

    @restoring_process_state()
    def export(
        self, out: str | Path | None = None, *, pick: str = "", index: int | None = None, progress: Progress | None = None,
        precision: Precision | None = None,
    ) -> Certificate:
        """Export a member of :attr:`front` with ONNX and a certificate, as ``lrsearch export`` does.

        The member is loaded anew from the exported folder: by a fresh process if a study file says where model and data come from,
        else by this one.

        Args:
            out: where to; ``export`` in the study folder by default.
            pick: conditions over the columns of the front, such as ``params_ratio<=0.3``; the best-scoring member that satisfies
                them and whose limits hold when it is measured again. All members satisfy an empty one.
            index: the row of the front instead.
            progress: told which members were refused, and why.
            precision: ``float32``, ``float16`` or ``int8``, of ``model.onnx``; the study's ``deploy.precision`` by default.

        Raises:
            LrsearchError: one of its kinds, for anything a caller can mend.
        """
        if pick and index is not None:
            raise ConfigError("give pick or index, not both", value=index, place="Result.export", remedy="Leave one out.")
        target = Path(out) if out else self._study.exported
        certificate = self._exported(target, pick, index, progress, precision)
        renew(target.parent)
        return certificate

    def _exported(
        self, target: Path, pick: str, index: int | None, progress: Progress | None, precision: Precision | None,
    ) -> Certificate:
        config = self._config
        if self._base is None or self._scoring is None:
            if config.model and config.data:
                return export_member(self.folder, None, None, None, pick, index, target, progress, "auto", precision, None)
            raise ConfigError(
                "a result read from its folder has neither model nor data", value="neither", place="Result.export",
                remedy="Use lrsearch.export with study= or model=.",
            )
        rows = choose(self.front, self.objectives[0], pick, index, "Result.export: ")
        sets = {"score": self._scoring} | ({"calibration": self._calibration} if self._calibration else {})
        materials, fresh = Materials(self._base, config, sets, self._task), bool(config.model and config.data)
        wanted = parse(DeployConfig, {"precision": precision or config.deploy.precision}, "Result.export").precision
        return export_rows(self.folder, self.front, rows, target, materials, pick, progress, fresh, wanted)

    def _page_data(self) -> PageData:
        config, index = self._config, self.choices.first
        decoder, times = None, dict[int, datetime]()
        with suppress(StudyError):  # of before studies kept their space
            decoder = space_file.load(self._study)
        with suppress(StudyError):
            times = finish_times(open_storage(self._study))
        certificates = []
        with suppress(ArtifactError):
            certificates.append(Certificate.load(self._study.exported))
        return PageData(
            header(config, self.dense, self.baseline, read_made(self._study), times), self.trials, self.front, self._records, self.dense,
            self.objectives, Budget(**config.budget).resolve(self.dense), self.table(), self.notes, self.comparison, self.rungs,
            "" if index is None else str(self.front.trial[index]), decoder, times,
            {"latency": self.plot_latency(), "fidelity": fidelity_figures(self._study, config, self.dense, self.unit)}, certificates,
            self.unit,
        )

    @restoring_process_state()
    def write(self) -> None:
        """The front as text, for other programs and as a page into the study folder: all made before any is written."""
        table, columns = self.front.to_csv(index_label="index"), io.BytesIO()
        self.front.to_parquet(columns)
        whole = page(self.name, self._page_data().to_dict())
        write_whole(self._study.front_table, table)
        write_whole(self._study.front_columns, columns.getvalue())
        write_whole(self._study.page, whole)


def renew(folder: Path) -> None:
    """Write the report and the front's files of the study in ``folder`` anew, so that they show what was just found of one of its models.

    Does nothing where ``folder`` is no study, or a damaged one, or while a search runs there, which does it at its end.
    """
    if not StudyFolder(folder).identity.exists():
        return
    with suppress(LrsearchError), alone(folder):
        Result.of(folder).write()


def _told(dense_int8: Mapping[Any, Any], unit: str) -> str:
    """What the dense model in int8 takes and loses, in a line."""
    metric = "" if pd.isna(dense_int8["metric"]) else f", metric {dense_int8['metric']:.2%}"
    took = f"{dense_int8['measured_ms']:.3f} ms, {dense_int8['measured_ms_ratio']:.1%} of the dense model's"
    return f"{dense_int8['source']}, which needs no search: {took}, at {divergence_name(unit)} {dense_int8['divergence']:.4f}{metric}."
