"""The exception tree. Every error a user can cause says four things on one line.

LrsearchError
├── ConfigError     a YAML key, a command-line option or an argument
├── ModelError      the model: how it is found, built, or what it is made of
├── DataError       the data: how it is found, its shapes, its overlaps
├── BudgetError     a budget that no plan can meet
├── ScoreError      a score that is not a number
├── StudyError      a study folder: another configuration, in use, incomplete
├── ArtifactError   a saved model: missing, damaged, or for another model
└── LatencyError    a latency table: missing, damaged, or of another machine, backend or model
"""


class LrsearchError(Exception):
    """An error with its rule, the value received, the place, and the remedy.

    Args:
        rule: what must hold, e.g. ``"must be between 0 and 1"``.
        value: what was received; shown with ``repr`` and shortened.
        place: where, e.g. ``"resnet.yaml: budget.params"``.
        remedy: what to do about it.
    """

    def __init__(self, rule: str, *, value: object, place: str, remedy: str) -> None:
        self.rule, self.value, self.place, self.remedy = rule, value, place, remedy
        super().__init__(str(self))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback: the line that says what to mend."""
        return [f"{type(self).__name__}: {self}"]

    def __str__(self) -> str:
        shown = " ".join(_text(self.value).split()) or repr(self.value)
        shown = shown if len(shown) <= 160 else shown[:157] + "..."
        return " ".join(f"{self.place}: {self.rule}; got {shown}. {self.remedy}".splitlines())  # keys and paths may hold line breaks


def _text(value: object) -> str:
    """``value`` as it was written, else its ``repr``; the type's name where it has none, as a list in itself and integers of
    5,000 digits have not."""
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that cannot be shown"


class ConfigError(LrsearchError):
    """A YAML key, a command-line option or an argument is wrong."""


class ModelError(LrsearchError):
    """The model cannot be found, built, or compressed."""


class DataError(LrsearchError):
    """The data cannot be found or used, or two sets overlap."""


class BudgetError(LrsearchError):
    """No plan in the search space can meet the budget."""


class ScoreError(LrsearchError):
    """A loss or a score is not a finite number."""


class StudyError(LrsearchError):
    """A study folder cannot be used."""


class ArtifactError(LrsearchError):
    """A saved model cannot be loaded."""


class LatencyError(LrsearchError):
    """A latency table cannot be used."""
