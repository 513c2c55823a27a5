"""What the tests of studies do to a job, and read in a study folder."""

import optuna

from lrsearch.spec.progress import Progress

CONTROLS = {"uniform", "sparse-only", "low-rank-only", "knapsack"}
FINETUNED = {
    "proxy": {"finetune": {"steps": 4, "rungs": 2, "batch": 25}},
    "search": {"trials": 8, "control_points": 1, "lowest": 0.2, "sampler": "random"},
}


class Notes(Progress):
    """A progress that keeps the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def searching(job, **changes):
    """``job`` with other settings of its search."""
    return {**job, "search": {**job["search"], **changes}}


def stored(folder):
    """The Optuna study in ``folder``."""
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")


def states(folder):
    """The states of all trials in ``folder``."""
    return [t.state.name for t in stored(folder).get_trials()]


def corrected_untrained(folder, numbers):
    """Whether each of the plans ``numbers`` had its BatchNorm corrected before any training, as :func:`told` has it."""
    trials = stored(folder).get_trials()
    return {n: {trials[n].user_attrs["scores"][0]["batchnorm"]} for n in numbers}


def interrupt(*_):
    """What Ctrl-C does."""
    raise KeyboardInterrupt
