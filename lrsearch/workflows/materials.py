"""Materials: the model, data and settings of a study, whether a study file or Python gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.cost import Budget
from lrsearch.spec.parse import parse
from lrsearch.spec.shipped import load_space, load_study
from lrsearch.spec.space import Space
from lrsearch.study.identity import read_config, refuse_other_study
from lrsearch.study.study_folder import StudyFolder
from lrsearch.task.base import Task
from lrsearch.task.data import Examples
from lrsearch.task.examples import Data
from lrsearch.task.model_kinds import refuse_unsupported, unwrapped
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows.from_folder import config_alone

Study = StudyConfig | str | Path  # read already, or the path of a study file, or the name of a shipped one
ROLES = ("calibration", "score", "train")


@dataclass(frozen=True)
class Materials:
    """What a command works on.

    Attributes:
        model: the dense model; never changed.
        config: of the study.
        sets: role → examples, of those that were given.
        task: of the caller's own code, instead of the one that the configuration names.
    """

    model: nn.Module
    config: StudyConfig
    sets: Mapping[str, Examples]
    task: Task | type[Task] | None = None

    @property
    def calibration(self) -> Examples:
        """For the layers' statistics and BatchNorm."""
        return self._needed("calibration")

    @property
    def score(self) -> Examples:
        """What candidates are ranked on."""
        return self._needed("score")

    @property
    def train(self) -> Examples:
        """What is finetuned on."""
        return self._needed("train")

    def _needed(self, role: str) -> Examples:
        if role not in self.sets:
            raise ConfigError(f"needs {role} data", value="nothing", place=f"data.{role}", remedy=f"Give {role} data.")
        return self.sets[role]

    @classmethod
    def of_study(cls, config: StudyConfig, *roles: str) -> "Materials":
        """Load what a study that the user names says, its data of ``roles`` alone.

        Raises:
            LrsearchError: it names none, or what cannot be loaded.
        """
        if config.model is None or config.data is None:
            raise ConfigError("a study needs model and data", value="nothing", place=config.name, remedy="Add them, or pass a model.")
        model, sources = supported(load_base(config.model)), {role: getattr(config.data, role) for role in roles}
        return cls(model, config, {role: load_examples(source, role, model) for role, source in sources.items() if source})

    @classmethod
    def of_python(
        cls, model: nn.Module, config: StudyConfig, *, calibration: Data | None = None, score: Data | None = None,
        train: Data | None = None, task: Task | type[Task] | None = None,
    ) -> "Materials":
        """What Python has at hand."""
        model, given = supported(model), zip(ROLES, (calibration, score, train), strict=True)
        return cls(model, config, {role: Examples(data, role, None, model) for role, data in given if data is not None}, task)

    @classmethod
    def of(
        cls, model: nn.Module | None, config: StudyConfig, *roles: str, calibration: Data | None = None, score: Data | None = None,
        train: Data | None = None, task: Task | type[Task] | None = None,
    ) -> "Materials":
        """Those of Python where ``model`` is given, else those that ``config`` names, which must then be the user's own words."""
        if model is None:
            return replace(cls.of_study(config, *roles), task=task)
        return cls.of_python(model, config, calibration=calibration, score=score, train=train, task=task)


def supported(model: nn.Module) -> nn.Module:
    """``model`` without what ``torch.compile`` and DataParallel put around it.

    Raises:
        ModelError: it is of a kind that cannot be compressed, such as TorchScript.
    """
    refuse_unsupported(model)
    return unwrapped(model)


def model_or_study(given: Any) -> tuple[nn.Module | None, Study | None]:
    """What a command was given first: a model, or what names one.

    Raises:
        ModelError: it is neither, such as an exported program.
    """
    if isinstance(given, nn.Module):
        return given, None
    if not isinstance(given, StudyConfig | str | Path):
        refuse_unsupported(given)
    return None, given


def settings_of(
    study: Study | None, settings: Mapping[str, Any], place: str, budget: Budget | None = None, space: Space | str | None = None,
) -> StudyConfig:
    """The configuration of a study, or the default one, with ``settings`` laid over it.

    Raises:
        ConfigError: a file, or one of them, is wrong.
    """
    if isinstance(study, str | Path):
        study = load_study(str(study))
    given = {key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for key, value in settings.items()}
    if budget is not None:
        given["budget"] = limits(budget, place)
    if space is not None:
        given["space"] = load_space(space) if isinstance(space, str) and space != "auto" else space
    if study is not None and not given:
        return study
    before = study.model_dump(mode="json", exclude=study.derived) if study else {}
    return parse(StudyConfig, {**before, **given}, place)


def limits(budget: Budget, place: str) -> dict[str, float]:
    """Metric → limit.

    Raises:
        ConfigError: it is no :class:`Budget`.
    """
    if isinstance(budget, Budget):
        return dict(budget.items())
    raise ConfigError("must be a Budget", value=budget, place=f"{place}: budget", remedy="For example lrsearch.Budget(params=0.3).")


def refuse_both(study: Study | None, model: nn.Module | None, place: str) -> None:
    """Check that a command was not given two models.

    Raises:
        ConfigError: it was.
    """
    if study is not None and model is not None:
        raise ConfigError("give a study, or a model with its data", value="both", place=place, remedy="Pass study= or model=.")


def study_in(folder: Path, study: Study | None, model: nn.Module | None, place: str, metric: str = "auto") -> StudyConfig:
    """The configuration of the study in ``folder``, with the model, data and metric that the caller names: a folder may name no code.

    Args:
        folder: the study's.
        study: the user's study file, which must be that of the folder; where there is no ``model`` either, the folder's own settings are
            taken, if they name no code.
        model: given instead, with its data.
        place: the command, for messages.
        metric: the study's ``proxy.metric``, where there is no ``study``.

    Raises:
        ConfigError: both are given, or neither and the folder names code, or no model; or the metric is another.
        StudyError: the folder holds no study, or another one.
    """
    refuse_both(study, model, place)
    if study is None and model is None:
        return config_alone(folder)
    if study is not None:
        config = settings_of(study, {}, place)
        refuse_other_study(StudyFolder(folder), config)
        return config
    config = read_config(StudyFolder(folder))
    if config.proxy.metric != metric:
        raise ConfigError(
            "must be the study's metric, in the caller's words", value=metric, place=f"{place}: metric",
            remedy=f"Pass metric={config.proxy.metric!r}, if you trust that code.",
        )
    return config
