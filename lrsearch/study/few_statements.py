"""Optuna's storage of a shared database, by fewer statements: every one is a round trip, and those of a turn keep others waiting.

What nobody can have written since is not read again, and what belongs to one trial is written at once.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import column, or_, select, table
from sqlalchemy.dialects import mysql, postgresql

_TRIALS = table("trials", column("trial_id"), column("study_id"), column("state"))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
_PARAMETERS = table("trial_params", column("trial_id"), column("param_name"), column("param_value"), column("distribution_json"))


class FewStatements(_CachedStorage):
    """The storage of one study, by the connection of its turns.

    It builds on what Optuna keeps to itself, so it serves the releases that it was tried with; others take Optuna's own.

    Args:
        backend: Optuna's own.
        version: a number that stays while nobody can have written, -1 if it cannot be told; see :attr:`DatabaseTurn.version`.
    """

    def __init__(self, backend: RDBStorage, version: Callable[[], int]) -> None:
        super().__init__(backend)
        self._engine, self._now, self._seen = backend.engine, version, -1
        self._latest, self._open = -1, dict[int, TrialState | None]()  # the last id, and the unfinished ones in what state they were read
        self._made: FrozenTrial | None = None  # as Optuna fills it
        self._asked: list[dict[str, Any]] | None = None  # the parameters of the trial that is being made

    def set_trial_user_attrs(self, trial_id: int, values: Mapping[str, Any]) -> None:
        """Write several attributes of a trial, all or none.

        Raises:
            UpdateFinishedTrialError: it is finished.
        """
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in values.items()]
        with self._engine.begin() as connection:
            state = connection.scalar(select(_TRIALS.c.state).where(_TRIALS.c.trial_id == trial_id))
            if TrialState[str(state)].is_finished():
                raise UpdateFinishedTrialError(f"trial {trial_id} is finished")
            if rows:
                connection.execute(_upsert(self._engine.name, rows))

    def say(self, trial: Trial, values: Mapping[str, Any]) -> None:
        """The same in a trial of this worker's."""
        self.set_trial_user_attrs(trial._trial_id, values)
        trial._cached_frozen_trial.user_attrs.update(values)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A context in which a trial is asked for, in a turn: nobody else can have changed it, and its parameters are written last."""
        rows = self._asked = list[dict[str, Any]]()
        try:
            yield
        finally:
            made, self._made, self._asked = self._made, None, None
        if rows:
            with self._engine.begin() as connection:
                connection.execute(_PARAMETERS.insert().values(rows))
        if made:
            study, number = self._trial_id_to_study_id_and_number[made._trial_id]
            self._studies[study].trials[number] = made
            self._latest, self._open[made._trial_id] = max(self._latest, made._trial_id), made.state

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution) -> None:
        """See :meth:`asking`."""
        if self._asked is None:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        else:
            told = {"param_name": param_name, "param_value": param_value_internal, "distribution_json": distribution_to_json(distribution)}
            self._asked.append({"trial_id": trial_id, **told})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna reads it; the trial that is being made is known, and under way by now."""
        if self._asked is None or trial_id not in self._trial_id_to_study_id_and_number:
            return super().get_trial(trial_id)
        study, number = self._trial_id_to_study_id_and_number[trial_id]
        found = copy.deepcopy(self._studies[study].trials[number])
        if not found.state.is_finished():
            found.state, found.datetime_start = TrialState.RUNNING, found.datetime_start or datetime.now()
            self._made = found
        return found

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Read what is new, or in another state than it was read in: what others say in a trial that is under way is read when it ends."""
        if 0 <= (version := self._now()) == self._seen:
            return
        with self._lock:
            self._studies.setdefault(study_id, _StudyInfo())
            if changed := self._changed(study_id):
                trials = self._backend._get_trials(study_id, None, changed, max(changed))
                self._add_trials_to_cache(study_id, trials)
                self._latest = max(self._latest, *changed)
                self._open |= {t._trial_id: None if t.state == TrialState.RUNNING and not t.params else t.state for t in trials}
                self._open = {i: state for i, state in self._open.items() if state is None or not state.is_finished()}
        self._seen = version

    def _changed(self, study_id: int) -> set[int]:
        """The ids of trials that have to be read; one that was seen while it was made, without its parameters, is read again."""
        where = or_(_TRIALS.c.trial_id > self._latest, _TRIALS.c.trial_id.in_(self._open))
        with self._engine.connect() as connection:
            rows = connection.execute(select(_TRIALS.c.trial_id, _TRIALS.c.state).where(_TRIALS.c.study_id == study_id, where)).all()
        return {i for i, state in rows if self._open.get(i) != TrialState[state]}


def _upsert(database: str, rows: list[dict[str, Any]]) -> Any:
    """Attributes, also such as are there already."""
    if database == "mysql":
        there = mysql.insert(_ATTRIBUTES).values(rows)
        return there.on_duplicate_key_update(value_json=there.inserted.value_json)
    new = postgresql.insert(_ATTRIBUTES).values(rows)
    return new.on_conflict_do_update(index_elements=["trial_id", "key"], set_={"value_json": new.excluded.value_json})
