"""TrialStore: a study's trials in its Optuna storage, where all of the search's state is.

A plan's first trial is its rung 0. A finished trial cannot be changed, so each further rung is a trial of its own, of the
same parameters, with the user attribute ``continues``: the number of the first. It is queued (WAITING) by whoever finds
that the plan is to go on. Below the last rung trials end as PRUNED, there as COMPLETE with their values. A trial that ended as
FAIL without a ``reason`` was killed, and one that is ``retried`` ended in an error: a control is queued again, a plan of the
search too, and a rung is due again by the same rule that first sent the plan there, until it was tried ``TRIES`` times. How often
is in the user attributes ``raised`` and ``died``, which the next try takes over; a trial that the user interrupted does not count.
Several workers may have one each at the same time; what reads and then changes is done by turns.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.search.proposals import Proposals
from lrsearch.search.records import CONTINUES, DENSE, PLAN, REASON, RETRIED, RUNG, SEARCH, Record, is_settled, merged, parameters_of, values
from lrsearch.spec.plan import Plan
from lrsearch.spec.training import Recipe
from lrsearch.study.losses import Losses
from lrsearch.study.optuna_view import LAYERS, name_objectives, readable
from lrsearch.study.storage import let_go, opened, place_of, reading, refuse_moved, study_in
from lrsearch.study.stored_trials import IDENTITY
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.tries import DIED, INTERRUPTED, RAISED, TRIES, deaths, given_up, tried
from lrsearch.study.turns import DatabaseTurn
from lrsearch.study.workers import Workers
from lrsearch.study.writes import Writes

if TYPE_CHECKING:
    from lrsearch.study.few_statements import FewStatements

FEW = ("5.0.",)  # releases of Optuna whose own parts FewStatements was tried with; others take Optuna's storage as it is
WORKER, RECIPE = "worker", "recipe"
METRIC = "metric"  # as a number, for a column of Optuna's dashboard; what is read is in the scores
PLANS = "plans"


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
        self._few: FewStatements | None = None
        self._own: Trial | None = None  # what this worker is at
        self.study = self._open()
        self._writes = Writes(self._place, workers.turn)
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
            self._lose(self.study._storage.get_trial(trial._trial_id))
        return bool(lost)

    def _lose(self, trial: FrozenTrial) -> None:
        """Give up ``trial``, which its worker will not end."""
        died = deaths(trial, self._trials(TrialState.FAIL))
        told = {DIED: died, **({REASON: f"its worker died {died} times"} if died >= TRIES else {})}
        for key, value in told.items():
            self.study._storage.set_trial_user_attr(trial._trial_id, key, value)
        self.study.tell(trial.number, state=TrialState.FAIL)
        if REASON not in told:
            self._requeue(trial)

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
        return tried(self._trials(TrialState.FAIL), (source, number, rung, parameters))

    def _open(self) -> Study:
        turn, first = self.workers.turn, StudyDirection.MINIMIZE if self.objectives[0] == "divergence" else StudyDirection.MAXIMIZE
        with reading(self._place, "Give another --out."):
            self._database: BaseStorage = turn.storage if isinstance(turn, DatabaseTurn) else opened(self._place)
            if isinstance(turn, DatabaseTurn) and optuna.__version__.startswith(FEW):
                from lrsearch.study.few_statements import FewStatements

                self._few = FewStatements(turn.storage, lambda: turn.version)
            storage = self._few or self._database
            if known := study_in(storage, self._place):
                return known
            directions = [first, *[StudyDirection.MINIMIZE] * (len(self.objectives) - 1)]
            name = self._place.study or self._name
            study = optuna.create_study(storage=storage, study_name=name, directions=directions)
            name_objectives(study, self.objectives)
            return study

    def remember(self, identity: Mapping[str, Any], dense: Mapping[str, Any], plans: int) -> None:
        """Keep with the trials what study they are of, as :func:`stored_identity` reads it, the dense model's cost and score, and how many
        ``plans`` are searched."""
        for key, value in {IDENTITY: identity, DENSE: dense, PLANS: plans}.items():
            if self.study.user_attrs.get(key) != value:
                self.study.set_user_attr(key, value)

    def recipe(self, found: Recipe | None = None) -> Recipe | None:
        """That of the study's finetunes, which who first ``found`` one has settled; None if nobody has."""
        if found is not None and RECIPE not in self.study.user_attrs:
            self.study.set_user_attr(RECIPE, found)
        kept: list[Any] | None = self.workers.turn.patiently(lambda: self.study.user_attrs.get(RECIPE))
        return Recipe(*kept) if kept else None

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials, read anew only where something was written since."""
        version = self._writes.version()
        if version < 0 or version != self._version:
            self._known = self.workers.turn.patiently(lambda: self.study.get_trials(deepcopy=False))
            self._version = version
        return [t for t in self._known if t.state in states] if states else self._known

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
        self._writes.close()
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
        return given_up(self._trials(TrialState.FAIL), plan)

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
        with self._few.asking() if self._few else nullcontext():
            trial = self._own = self.study.ask(self.proposals.space)
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
        if not (state := self._trials()[trial.number].state).is_finished():
            self.note(trial, record)
            if record.complete:
                first, *costs = values(record, self.objectives)
                self._end(trial, TrialState.COMPLETE, [first if self.objectives[0] == "divergence" else -first, *costs])
            else:
                self._end(trial, TrialState.PRUNED)
        self._over()
        return state != TrialState.FAIL

    def _end(self, trial: Trial, state: TrialState, found: list[float] | None = None) -> None:
        """What Optuna's ``tell`` does to a trial that is known to be under way, without reading it twice more."""
        self.study.sampler.after_trial(self.study, self._trials()[trial.number], state, found)
        self.study._storage.set_trial_state_values(trial._trial_id, state, found)

    def note(self, trial: Trial, record: Record) -> None:
        """Store what :meth:`finish` is to store, but for the end: it needs no turn, as nobody else writes to ``trial``."""
        losses = self._losses.telling(record.number, record.rung) if self._losses and record.twin is None else {}
        measured = {} if record.score.metric is None else {METRIC: record.score.metric}
        told = {**record.attributes(), **measured, **losses, LAYERS: readable(record.plan)}
        with suppress(UpdateFinishedTrialError):  # it was given up, as :meth:`finish` will see
            self._say(trial, told)

    def _over(self) -> None:
        """The end of this worker's trial is told: its heart beats for it no more."""
        self._own = None
        if self.workers.heart:
            self.workers.heart.end()

    def begin(self, trial: Trial, plan: Plan) -> None:
        """Store who is about to try what in ``trial``, for the case that it never ends; it needs no turn."""
        with suppress(UpdateFinishedTrialError):  # it was given up, as :meth:`finish` will see
            self._say(trial, {PLAN: plan.to_dict(), WORKER: self.workers.name})

    def _say(self, trial: Trial, told: Mapping[str, Any]) -> None:
        """Store those attributes of ``trial`` that it does not have, at once where the storage can."""
        known = trial.user_attrs
        new = {key: value for key, value in told.items() if known.get(key) != value}
        if self._few and new:
            self._few.say(trial, new)
        for key, value in new.items() if not self._few else ():
            trial.set_user_attr(key, value)

    def fail(self, trial: Trial, reason: str, retry: bool = False) -> bool:
        """Store why ``trial`` has no score.

        Args:
            retry: its plan may be tried again, until that was done ``TRIES`` times.

        Returns:
            Whether it is not tried again.
        """
        if self._trials()[trial.number].state.is_finished():
            self._over()
            return False  # it was given up, and its plan is another's
        raised = trial.user_attrs.get(RAISED, 0) + 1
        again = retry and raised < TRIES
        for key, value in {REASON: reason, RAISED: raised, **({RETRIED: True} if again else {})}.items():
            trial.set_user_attr(key, value)
        self.study.tell(trial, state=TrialState.FAIL)
        if again:
            self._requeue(self._trials()[trial.number])
            self.queue_controls()
        self._over()
        return not again

    def interrupt(self, trial: Trial) -> None:
        """Store that whatever ends ``trial`` is none of its plan's doing."""
        with suppress(Exception):  # what ends the trial is told, whether or not it can be stored
            trial.set_user_attr(INTERRUPTED, True)

    def hand_back(self, interrupted: bool) -> None:
        """Give up the trial that this worker was at when it ended, if it was at one, so that others need not wait to take its plan.

        Args:
            interrupted: it was told to end.
        """
        trial = self._own
        self._over()
        if trial is None:
            return
        if interrupted:
            self.interrupt(trial)
        with suppress(Exception), self.workers.turn:  # where the storage is away, others find out in time
            if (found := self.study._storage.get_trial(trial._trial_id)).state == TrialState.RUNNING:
                self._lose(found)
                self.queue_controls()
