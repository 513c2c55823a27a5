"""TrialStore: a study's trials in its Optuna storage, where all of the search's state is.

A plan's first trial is its rung 0. A finished trial cannot be changed, so each further rung is a trial of its own, of the
same parameters, with the user attribute ``continues``: the number of the first. It is queued (WAITING) by whoever finds
that the plan is to go on. Below the last rung trials end as PRUNED, there as COMPLETE with their values. A trial that ended as
FAIL without a ``reason`` was killed, and one that is ``retried`` ended in an error: a control is queued again, a plan of the
search too, and a rung is due again by the same rule that first sent the plan there, until it was tried ``TRIES`` times. How often
is in the user attributes ``raised`` and ``died``, which the next try takes over; a trial that the user interrupted does not count.
Several workers may have one each at the same time; what reads and then changes is done by turns.
"""

import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.errors import StudyError
from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, DENSE, PLAN, REASON, RETRIED, RUNG, SEARCH, Record, is_settled, merged, parameters_of, values
from lrsearch.spec.plan import Plan
from lrsearch.study.losses import Losses
from lrsearch.study.storage import LOCK_TIMEOUT, let_go, opened, place_of, reading, refuse_moved, study_in
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.turns import DatabaseTurn
from lrsearch.study.workers import Workers

WORKER, IDENTITY, LEARNING_RATE, LAYERS = "worker", "identity", "learning_rate", "layers"
METRIC = "metric"  # as a number, for a column of Optuna's dashboard; what is read is in the scores
PLANS = "plans"
RAISED, DIED, INTERRUPTED = "raised", "died", "interrupted"
TRIES = 3  # of a plan at a rung that ends in an error, and as many that end its worker


class TrialStore:
    """The trials of a study; those that a killed worker left unfinished are given up.

    Args:
        folder: the study folder.
        objectives: ``divergence`` or ``metric``, then costs.
        proposals: decodes trials into plans.
        workers: whose trials are under way.
        name: of a new study in its storage.
        losses: told what trials say of them.

    Raises:
        StudyError: the file is damaged.
    """

    def __init__(
        self, folder: StudyFolder, objectives: Sequence[str], proposals: Proposals, workers: Workers, name: str = "study",
        losses: Losses | None = None,
    ) -> None:
        self._name = name
        self.objectives, self.proposals, self.workers = objectives, proposals, workers
        self._place = place_of(folder)
        self.study = self._open()
        self._watch: sqlite3.Connection | None = None
        self._version, self._known = -1, list[FrozenTrial]()
        self._read: dict[int, Record] = {}
        self._losses = losses
        self._records: tuple[int, list[Record]] = -1, []
        self.give_up()

    def give_up(self) -> bool:
        """Give up the trials of workers that were killed; returns whether there were any. A plan of the search is queued again.

        What its workers died of ``TRIES`` times has failed.
        """
        lost = self._lost(self._trials(TrialState.RUNNING))
        for trial in lost:
            died = max(t.user_attrs.get(DIED, 0) for t in self._same(trial)) + (INTERRUPTED not in trial.user_attrs)
            told = {DIED: died, **({REASON: f"its worker died {died} times"} if died >= TRIES else {})}
            for key, value in told.items():
                self.study._storage.set_trial_user_attr(trial._trial_id, key, value)
            self.study.tell(trial.number, state=TrialState.FAIL)
            if REASON not in told:
                self._requeue(trial)
        return bool(lost)

    def _same(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """``trial`` and those that failed with its plan at its rung, whatever their source: what ends a worker is the plan."""
        plan, rung = trial.user_attrs.get(PLAN), trial.user_attrs.get(RUNG)
        failed = self._trials(TrialState.FAIL) if plan else []
        return [trial, *(t for t in failed if t.user_attrs.get(PLAN) == plan and t.user_attrs.get(RUNG) == rung)]

    def _lost(self, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those ``running`` trials whose workers are dead."""
        if self.workers.heart is None:
            return [t for t in running if not self.workers.alive(t.user_attrs.get(WORKER))]
        dead = self.workers.heart.dead(self.study._study_id, running)
        return [t for t in running if t._trial_id in dead]

    def _requeue(self, trial: FrozenTrial) -> None:
        """Queue a plan of the search again; controls and rungs come again by themselves."""
        first, parameters = not trial.user_attrs.keys() & {"source", CONTINUES}, parameters_of(trial)
        if first and parameters.keys() == self.proposals.space.keys():
            own = {key: value for key, value in trial.user_attrs.items() if key == PLAN}
            self.study.enqueue_trial(parameters, user_attrs=self._tried(parameters) | own)

    def _tried(
        self, parameters: Mapping[str, float], source: str = SEARCH, number: int | None = None, rung: int | None = None,
    ) -> dict[str, int]:
        """How often that was tried in vain, as user attributes of the next try."""
        wanted = source, number, rung, parameters
        before = [t.user_attrs for t in self._trials(TrialState.FAIL) if not is_settled(t) and _identity(t) == wanted]
        counts = {key: max((a.get(key, 0) for a in before), default=0) for key in (RAISED, DIED)}
        return {key: count for key, count in counts.items() if count}

    def _open(self) -> Study:
        turn, first = self.workers.turn, StudyDirection.MINIMIZE if self.objectives[0] == "divergence" else StudyDirection.MAXIMIZE
        with reading(self._place, "Give another --out."):
            self._database = turn.storage if isinstance(turn, DatabaseTurn) else opened(self._place)
            if known := study_in(self._database, self._place):
                return known
            directions = [first, *[StudyDirection.MINIMIZE] * (len(self.objectives) - 1)]
            name = self._place.study or self._name
            study = optuna.create_study(storage=self._database, study_name=name, directions=directions)
            name_objectives(study, self.objectives)
            return study

    def remember(self, identity: Mapping[str, Any], dense: Mapping[str, Any], plans: int) -> None:
        """Keep with the trials what study they are of, as :func:`stored_identity` reads it, the dense model's cost and score, and how many
        ``plans`` are searched."""
        for key, value in {IDENTITY: identity, DENSE: dense, PLANS: plans}.items():
            if self.study.user_attrs.get(key) != value:
                self.study.set_user_attr(key, value)

    def learning_rate(self, found: float | None = None) -> float | None:
        """That of the study's finetunes, which who first ``found`` one has settled; None if nobody has."""
        if found is not None and LEARNING_RATE not in self.study.user_attrs:
            self.study.set_user_attr(LEARNING_RATE, found)
        rate: float | None = self.workers.turn.patiently(lambda: self.study.user_attrs.get(LEARNING_RATE))
        return rate

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials, read anew only where something was written since."""
        version = self._written()
        if version < 0 or version != self._version:
            self._known = self.workers.turn.patiently(lambda: self.study.get_trials(deepcopy=False))
            self._version = version
        return [t for t in self._known if t.state in states] if states else self._known

    def _written(self) -> int:
        """SQLite's count of what connections but this one, which never writes, have written; -1 if it cannot be told.

        Elsewhere Optuna reads only what it has not seen finished, and nothing is read where nobody can have written.
        """
        if self._place.kind != "sqlite":
            return self.workers.turn.version
        try:
            if self._watch is None:
                url = f"{self._place.path.as_uri()}?mode=ro"
                self._watch = sqlite3.connect(url, LOCK_TIMEOUT, uri=True, check_same_thread=False)
                self._version = -1  # each connection counts from its own start
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return -1

    def records(self) -> list[Record]:
        """Every plan once, with its scores at all rungs."""
        for trial in self._trials(TrialState.COMPLETE, TrialState.PRUNED):
            if trial.number not in self._read and (record := Record.of(trial)):
                self._read[trial.number] = record
                if self._losses:
                    self._losses.hear([trial])
        if self._records[0] != len(self._read):
            self._records = len(self._read), merged(self._read.values())
        return list(self._records[1])

    def close(self) -> None:
        """Let go of the file until it is needed again, so that it is whole without those that SQLite keeps beside it."""
        if self._watch:
            self._watch.close()
            self._watch = None
        let_go(self._database)

    def sent(self) -> dict[int, int]:
        """First trial of a plan → the highest rung that it was sent to, if it was sent further and not killed on the way."""
        found: dict[int, int] = {}
        for trial in filter(is_settled, self._trials()):
            if CONTINUES in trial.user_attrs:
                number = trial.user_attrs[CONTINUES]
                found[number] = max(trial.user_attrs[RUNG], found.get(number, 0))
        return found

    def stuck(self) -> set[int]:
        """First trials of the plans whose further rung failed for a reason."""
        return {t.user_attrs[CONTINUES] for t in self._trials(TrialState.FAIL) if CONTINUES in t.user_attrs and is_settled(t)}

    def given_up(self, plan: Plan) -> str | None:
        """Why an equal plan, whatever its source, is not tried again after ``TRIES`` times; None if there is none."""
        failed = (t.user_attrs for t in self._trials(TrialState.FAIL) if is_settled(t) and CONTINUES not in t.user_attrs)
        tried = (a for a in failed if PLAN in a and max(a.get(DIED, 0), a.get(RAISED, 0)) >= TRIES)
        return next((a[REASON] for a in tried if Plan.from_dict(a[PLAN]) == plan), None)

    def queue_controls(self) -> list[str]:
        """Queue the dense model and the controls that are neither finished nor queued; returns a note on each that has no plan."""
        settled = list(filter(is_settled, self._trials()))
        seen, notes = [(t.user_attrs.get("source"), parameters_of(t)) for t in settled], []
        for source, parameters in self.proposals.controls():
            if (source, parameters) in seen:
                continue
            if self.proposals.plan(source, parameters) is None and source == DENSE:
                continue  # over the budget, as one would expect
            if self.proposals.plan(source, parameters) is None:
                targets = ", ".join(f"{k.removeprefix('target/')} {v:.1%}" for k, v in parameters.items() if k.startswith("target/"))
                notes.append(f"the control {source} is left out at {targets}: it has no plan that small")
            else:
                self.study.enqueue_trial(parameters, user_attrs={"source": source, **self._tried(parameters, source)})
        return notes

    def queue_rung(self, record: Record, rung: int) -> None:
        """Queue the next rung of a plan."""
        parameters = parameters_of(self._trials()[record.number])
        tried = self._tried(parameters, record.source, record.number, rung)
        self.study.enqueue_trial(parameters, user_attrs={"source": record.source, CONTINUES: record.number, RUNG: rung, **tried})

    def queued(self) -> list[str]:
        """The sources of the plans that are queued, further rungs not counted."""
        return [t.user_attrs.get("source", SEARCH) for t in self._trials(TrialState.WAITING) if CONTINUES not in t.user_attrs]

    def running(self) -> list[str]:
        """The sources of the plans whose first trial is under way."""
        return [t.user_attrs.get("source", SEARCH) for t in self._trials(TrialState.RUNNING) if CONTINUES not in t.user_attrs]

    def under_way(self) -> set[int]:
        """The first trials of the plans that are under way, at any rung."""
        return {t.user_attrs.get(CONTINUES, t.number) for t in self._trials(TrialState.RUNNING)}

    @property
    def empty(self) -> bool:
        """Whether nothing is queued."""
        return not self._trials(TrialState.WAITING)

    def ask(self) -> Trial:
        """Claim what is queued first, or a plan from the sampler.

        Raises:
            StudyError: the study was moved away.
        """
        refuse_moved(self.study, self._place)
        self.study.sampler = self.proposals.sampler(sum(map(is_settled, self._trials())))
        trial = self.study.ask(self.proposals.space)
        if self.workers.heart and isinstance(self._database, RDBStorage):
            self.workers.heart.begin(trial._trial_id, self._database)
        else:
            trial.set_user_attr(WORKER, self.workers.name)
        return trial

    def finish(self, trial: Trial, record: Record) -> bool:
        """Store what came of ``trial``, unless it is stored, and only the answer was lost.

        Returns:
            False where it was given up, as this worker was not heard of for too long: its plan is another's now.
        """
        self._over()
        if (state := self._trials()[trial.number].state).is_finished():
            return state != TrialState.FAIL
        self.note(trial, record)
        if record.complete:
            first, *costs = values(record, self.objectives)
            self.study.tell(trial, [first if self.objectives[0] == "divergence" else -first, *costs])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        return True

    def note(self, trial: Trial, record: Record) -> None:
        """Store what :meth:`finish` is to store, but for the end: it needs no turn, as nobody else writes to ``trial``."""
        known = trial.user_attrs
        losses = self._losses.telling(record.number, record.rung) if self._losses and record.twin is None else {}
        measured = {} if record.score.metric is None else {METRIC: record.score.metric}
        told = {**record.attributes(), **measured, **losses, LAYERS: readable(record.plan)}
        with suppress(UpdateFinishedTrialError):  # it was given up, as :meth:`finish` will see
            for key in told.keys() - {key for key, value in told.items() if known.get(key) == value}:
                trial.set_user_attr(key, told[key])

    def _over(self) -> None:
        """The end of this worker's trial is told: its heart beats for it no more."""
        if self.workers.heart:
            self.workers.heart.end()

    def begin(self, trial: Trial, plan: Plan) -> None:
        """Store who is about to try what in ``trial``, for the case that it never ends; it needs no turn."""
        with suppress(UpdateFinishedTrialError):  # it was given up, as :meth:`finish` will see
            for key, value in {PLAN: plan.to_dict(), WORKER: self.workers.name}.items():
                if trial.user_attrs.get(key) != value:
                    trial.set_user_attr(key, value)

    def fail(self, trial: Trial, reason: str, retry: bool = False) -> bool:
        """Store why ``trial`` has no score.

        Args:
            retry: its plan may be tried again, until that was done ``TRIES`` times.

        Returns:
            Whether it is not tried again.
        """
        self._over()
        if self._trials()[trial.number].state.is_finished():
            return False  # it was given up, and its plan is another's
        raised = trial.user_attrs.get(RAISED, 0) + 1
        again = retry and raised < TRIES
        for key, value in {REASON: reason, RAISED: raised, **({RETRIED: True} if again else {})}.items():
            trial.set_user_attr(key, value)
        self.study.tell(trial, state=TrialState.FAIL)
        if again:
            self._requeue(self._trials()[trial.number])
            self.queue_controls()
        return not again

    def interrupt(self, trial: Trial) -> None:
        """Store that whatever ends ``trial`` is none of its plan's doing."""
        self._over()
        with suppress(Exception):  # what ends the trial is told, whether or not it can be stored
            trial.set_user_attr(INTERRUPTED, True)


def readable(plan: Plan) -> dict[str, str]:
    """Layer name → what it becomes, such as ``svd rank 8 + density 0.2``, for Optuna's dashboard."""
    return {name: str(layer) for name, layer in plan.layers.items()}


def name_objectives(study: Study, objectives: Sequence[str]) -> None:
    """Let Optuna's own plots and its dashboard call the objectives by their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(objectives))


def open_storage(folder: StudyFolder) -> Study:
    """The Optuna study in ``folder``, without opening it for a search.

    Raises:
        StudyError: the storage is missing or damaged.
    """
    place, remedy = place_of(folder), "Run lrsearch search first."
    with reading(place, remedy):
        found = study_in(opened(place), place) if place.kind != "sqlite" or place.path.exists() else None
    if found is None:
        raise StudyError("must be the Optuna storage of a search", value="no such study", place=str(place), remedy=remedy)
    return found


def finish_times(study: Study) -> dict[int, datetime]:
    """First trial of a plan → when its last rung was done."""
    done = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)) if t.datetime_complete]
    return {t.user_attrs.get(CONTINUES, t.number): t.datetime_complete for t in sorted(done, key=lambda t: t.number) if t.datetime_complete}


def _identity(trial: FrozenTrial) -> tuple[str, int | None, int | None, dict[str, float]]:
    """What is tried: the source, the first trial of the plan and the rung, if it is a further one, and the parameters."""
    a = trial.user_attrs
    return a.get("source", SEARCH), a.get(CONTINUES), a.get(RUNG), parameters_of(trial)


def stored_identity(folder: StudyFolder) -> dict[str, Any] | None:
    """What the trials in ``folder`` are of: empty if they are of a study that did not keep it, None if there are none.

    Raises:
        StudyError: the storage is damaged.
    """
    place = place_of(folder)
    if place.kind == "sqlite" and not place.path.exists():
        return None
    with reading(place, "Give another --out."):
        storage = opened(place)
        study = study_in(storage, place)
        kept = None if study is None else study.user_attrs.get(IDENTITY, {} if study.get_trials(deepcopy=False) else None)
        let_go(storage)
    return kept
