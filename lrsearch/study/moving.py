"""A study moves: from its folder into a storage that machines share, or from there into a folder.

The copy is compared with what it is of, trial by trial. Until then neither may be searched, and a move that was killed is to be repeated.
Then the copy may be searched, and what it was copied from says where the study went.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from lrsearch.errors import StudyError
from lrsearch.search.records import CONTINUES, RUNG
from lrsearch.study.heart import Heart
from lrsearch.study.identity import receive
from lrsearch.study.losses import Losses
from lrsearch.study.storage import MOVED, Place, forget, let_go, opened, read_url, reading, settle
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.workers import alone

_TIMES = {"_trial_id", "_datetime_start", "datetime_start", "datetime_complete"}  # what storages number, or round


def into_storage(folder: StudyFolder, storage: str, name: str) -> int:
    """Move the study in ``folder`` to the ``storage``, under ``name``; returns how many trials it has.

    Raises:
        StudyError: it is in use or not there, the storage has a study of that name, or cannot be reached.
    """
    place = Place(read_url(storage), name)
    with alone(folder.path):
        moved = _moved(_here(folder), place, None if folder.shares else Losses(folder))
        settle(folder, storage, name, None, moved=True)
    return moved


def into_folder(storage: str, name: str, folder: StudyFolder) -> int:
    """Move study ``name`` from the ``storage`` into ``folder``, which is new, or the study's; returns how many trials it has.

    Raises:
        StudyError: the same, or the folder holds something else.
    """
    place = Place(read_url(storage), name)
    with alone(folder.path):
        settle(folder, storage, name, None, moved=True)
        receive(folder)
        moved = _moved(place, _here(folder))
        forget(folder)
    return moved


def _here(folder: StudyFolder) -> Place:
    return Place(URL.create("sqlite", database=str(folder.database.absolute())))


def _moved(source: Place, target: Place, losses: Losses | None = None) -> int:
    """Copy the study at ``source`` to ``target``, compare them, and mark which of them it is.

    Args:
        losses: that only its machine has, and the trials are to say from now on.
    """
    with reading(source, "Check that the study is there."), reading(target, "Check the URL, the password and that the database runs."):
        old, new = opened(source), opened(target)
        study, there = _study(old, source), _study(new, target)
        if study is None or (study.user_attrs.get(MOVED) and there and not there.user_attrs.get(MOVED)):
            raise _refused("the study must be there", "none, or moved", source, "Name the place where it is now.")
        if there and not there.user_attrs.get(MOVED):
            raise _refused("a study must not be written over", "a study of this name", target, "Give another --name.")
        if source.database and (alive := _alive(study, source)):
            raise _refused("nobody may search a study that moves", f"{alive} trials under way", source, "Wait, or end its workers.")
        study.set_user_attr(MOVED, str(target))
        if there:
            new.delete_study(there._study_id)
        name = target.study or study.study_name
        trials = [_saying(trial, losses) if losses else trial for trial in study.get_trials(deepcopy=False)]
        made = _copied(study, trials, new, name)
        if list(map(_facts, trials)) != list(map(_facts, made.get_trials(deepcopy=False))):
            raise _refused("a copy must be as what it is of", "another", target, "Try again; nothing was removed.")
        made.set_user_attr(MOVED, "")
        for storage in (old, new):
            let_go(storage)
    return len(trials)


def _saying(trial: FrozenTrial, losses: Losses) -> FrozenTrial:
    """``trial`` as it is, and with its losses."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial
    found = copy(trial)
    found.user_attrs = {**trial.user_attrs, **losses.blob(trial.user_attrs.get(CONTINUES, trial.number), trial.user_attrs.get(RUNG, 0))}
    return found


def _copied(study: Study, trials: Sequence[FrozenTrial], storage: BaseStorage, name: str) -> Study:
    """What :func:`optuna.copy_study` makes of ``study``, with ``trials``."""
    made = optuna.create_study(study_name=name, storage=storage, directions=study.directions)
    for key, value in study._storage.get_study_system_attrs(study._study_id).items():
        storage.set_study_system_attr(made._study_id, key, value)
    for key, value in study.user_attrs.items():
        made.set_user_attr(key, value)
    for trial in trials:
        storage.create_new_trial(made._study_id, template_trial=trial)
    return made


def _study(storage: BaseStorage, place: Place) -> Study | None:
    """The study at ``place``, also one that was moved away."""
    names = [study.study_name for study in storage.get_all_studies()]
    name = place.study or next(iter(names), None)
    return optuna.load_study(study_name=name, storage=storage) if name in names else None


def _alive(study: Study, place: Place) -> int:
    """How many of its trials are under way by workers that live."""
    running, heart = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)), Heart(place, "move")
    try:
        return len(running) - len(heart.dead(study._study_id, running))
    finally:
        heart.stop()


def _facts(trial: FrozenTrial) -> dict[str, Any]:
    return {key: value for key, value in vars(trial).items() if key not in _TIMES}


def _refused(rule: str, value: str, place: Place, remedy: str) -> StudyError:
    return StudyError(rule, value=value, place=str(place), remedy=remedy)
