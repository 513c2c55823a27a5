"""StudyConfig: a study file, validated strictly before any work."""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from re import fullmatch
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from lrsearch.spec.auto_space import auto_space
from lrsearch.spec.cost import Budget
from lrsearch.spec.metrics import METRICS, limited_metric, unknown_limit
from lrsearch.spec.recover import RecoverConfig
from lrsearch.spec.samplers import SAMPLERS
from lrsearch.spec.score import FORMER_NAMES
from lrsearch.spec.space import DOTTED, FAMILIES, MOST, DottedPath, Family, Positive, Seed, Space, Strict
from lrsearch.spec.storage import ValueType
from lrsearch.spec.training import Augment, Recipe, TrainingConfig
from lrsearch.spec.units import parse_bytes

log = logging.getLogger("lrsearch")


def _text_keys(value: Any) -> Any:
    """Outputs of a tuple are known by their numbers, which YAML reads as such."""
    return {str(k) if isinstance(k, int) else k: v for k, v in value.items()} if isinstance(value, dict) else value


ModuleName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]
Arguments = Annotated[dict[str, Any], Field(default_factory=dict)]
Precision = Literal["float32", "float16", "int8"]
TaskName = Annotated[str, Field(pattern=rf"^[\w-]+$|{DOTTED}")]
Tasks = Annotated[dict[str, Annotated[str, Field(pattern=r"^[\w-]+$")]], Field(min_length=1), BeforeValidator(_text_keys)]
OutputWeights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1), BeforeValidator(_text_keys)]
MOST_RUNGS = 30  # steps double from rung to rung: 2**30 are more than can be counted
MOST_THREADS = 1024  # more than any processor that ONNX Runtime is built for
MOST_CONTROLS = 1000  # budgets: each is four trials
LONGEST_NAME = 200  # characters; file systems take names of 255 bytes, and a study's files are named after it


def _name(value: str) -> str:
    if not value.isprintable() or "/" in value or "\\" in value or not value.strip(". "):
        raise ValueError("must be a name of printable characters without slashes, as the study's folder is named so")
    return value


def _path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("must be a path, without NUL")
    return value


Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_name)]
FilePath = Annotated[Path, AfterValidator(_path)]


class ModelConfig(Strict):
    """A timm name, or a dotted path ``module:function`` to a user's function."""

    timm: str | None = None
    call: DottedPath | None = None
    args: Arguments
    pretrained: bool = False
    checkpoint: FilePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.timm is None) == (self.call is None):
            raise ValueError("give exactly one of timm and call")
        return self


class SourceConfig(Strict):
    """Data from a dotted path or a folder of class folders; ``slice`` is taken after a fixed shuffle."""

    call: DottedPath | None = None
    args: Arguments
    folder: FilePath | None = None
    slice: tuple[Annotated[int, Field(ge=0, le=MOST)], Positive] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "SourceConfig":
        if (self.folder is None) == (self.call is None):
            raise ValueError("give exactly one of folder and call")
        if self.slice and self.slice[0] >= self.slice[1]:
            raise ValueError("slice must be [start, stop] with start < stop")
        return self


class DataConfig(Strict):
    """No input of ``score`` may be in another set; ``train``, needed only for finetuning, may share inputs with ``calibration``."""

    calibration: SourceConfig
    score: SourceConfig
    train: SourceConfig | None = None


class FinetuneConfig(TrainingConfig):
    """The short distillation finetune of the rungs above 0; ``steps: 0`` stops at rung 0.

    ``steps`` are those at the end of the last rung; each rung before it ends at half of the next.
    The learning rate falls by a cosine to 0 in each rung. ``augment`` is ``auto`` (``flip-crop`` for images, else none), ``none`` or
    ``flip-crop``. ``masks: reselect`` chooses the support of S anew every ``reselect_every`` steps. ``polish`` fits every layer once
    more before the first step, see :func:`lrsearch.train.polish.polish`, and begins from there if held-out calibration data find that
    better; where the range test finds it no better, no other plan is polished.
    """

    steps: Annotated[int, Field(ge=0, le=MOST)] = 0
    rungs: Annotated[int, Field(ge=1, le=MOST_RUNGS)] = 1
    augment: Augment = "auto"
    batchnorm: Literal["frozen", "free"] = "frozen"
    masks: Literal["fixed", "reselect"] = "fixed"
    reselect_every: Positive = 10
    polish: bool = True

    @model_validator(mode="after")
    def _rungs(self) -> "FinetuneConfig":
        if self.steps and self.steps < 2 ** (self.rungs - 1):
            raise ValueError(f"{self.rungs} rungs that double need at least {2 ** (self.rungs - 1)} steps")
        return self

    @property
    def recipe(self) -> Recipe | None:
        """That which is given; None where the learning rate is to be found."""
        given = super().recipe
        return given and given._replace(polish=self.polish)

    @property
    def ends(self) -> tuple[int, ...]:
        """Finetune steps at the end of each rung, doubling up to ``steps``; none without finetuning."""
        return tuple(self.steps // 2**k for k in reversed(range(self.rungs))) if self.steps else ()

    @property
    def longest(self) -> int:
        """Steps of the longest rung, in which the learning rate falls once."""
        return max((end - start for start, end in pairwise((0, *self.ends))), default=0)


class ProxyConfig(Strict):
    """How a candidate is scored. ``metric`` is ``auto``, the task's own, or a dotted path to
    ``f(outputs, labels) -> float``, higher is better; ``held_out`` the share of the
    calibration data that decides about BatchNorm."""

    batch: Positive = 100
    metric: Literal["auto"] | DottedPath = "auto"
    batchnorm: Literal["auto", "keep"] = "auto"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    finetune: FinetuneConfig = FinetuneConfig()

    @field_validator("metric", mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        """``top1`` is the metric of classification."""
        return "auto" if value == "top1" else value


class SearchConfig(Strict):
    """How the study looks for plans.

    ``lowest`` is the smallest cost aimed at, as a ratio of dense: by default half of the budget where the first cost among the
    objectives has one, else 0.1. ``control_points`` is the number of budgets, from ``lowest`` up, at which each control
    is evaluated. At every rung the best ``1 / reduction`` of the plans near each of those budgets are finetuned further.
    ``sampler`` is one of :data:`~lrsearch.spec.samplers.SAMPLERS`, or a dotted path to a function or class of
    ``seed`` that makes a sampler of Optuna's.
    ``parameters`` are the weights of a ``knapsack`` or every layer's ranks and densities (``direct``);
    layers that match the same glob of ``groups`` share theirs. ``families`` narrows what layers may
    become, besides dense, without a new profile.
    """

    trials: Positive = 60
    sampler: str = "learned"
    parameters: Literal["knapsack", "direct"] = "knapsack"
    groups: tuple[str, ...] = ()
    families: Annotated[tuple[Family, ...], Field(min_length=1)] = FAMILIES
    lowest: Annotated[float, Field(gt=0, le=1)] | None = None
    control_points: Annotated[int, Field(ge=1, le=MOST_CONTROLS)] = 4
    reduction: Annotated[int, Field(ge=2, le=MOST)] = 2
    seed: Seed = 0
    timeout: Annotated[float, Field(gt=0)] | None = None

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, value: str) -> str:
        refusal = "" if fullmatch(DOTTED, value) else SAMPLERS.refusal(value)
        if refusal:
            raise ValueError(f"{refusal}, or give module:function")
        return value

    @model_validator(mode="after")
    def _learnable(self) -> "SearchConfig":
        if self.sampler == "learned" and self.parameters == "direct":
            raise ValueError("sampler learned needs parameters knapsack; direct takes any other")
        return self


class LatencyConfig(Strict):
    """Where latency is measured, by which plans then may be limited and compared.

    ``table`` is a table to use instead of measuring; one of another machine only if ``cpu`` names that machine's processor.
    """

    backend: str = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] = 1
    batch: Positive = 1
    table: FilePath | None = None
    cpu: str | None = None


class WeightsConfig(Strict):
    """How saved values are stored; ``float32`` leaves every tensor its own type."""

    values: ValueType = "float32"


class DeployConfig(Strict):
    """What ships, ``model.onnx``: what its weights, or for ``int8`` its operators, are in, and how many bytes it may take.

    With ``int8`` trials are scored with weights and activations rounded likewise, and latencies are measured in it: those of the dense
    model too, of which ratios are shares. ``measure``: whether a study without ``latency`` times its front at its end, where ONNX
    Runtime is installed.
    """

    precision: Precision = "float32"
    onnx_bytes: Annotated[int, Field(gt=0)] | None = None
    measure: bool = True

    @field_validator("onnx_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value, "deploy.onnx_bytes") if isinstance(value, str) else value


def _auto_space(value: Any, info: ValidationInfo) -> Any:
    """``auto``, the default, as the space for the costs that the study names."""
    return auto_space(_counted(info.data.get("objectives", ()), info.data.get("budget", {}))) if value == "auto" else value


def _compared(budget: Any) -> tuple[str, ...]:
    """The objectives of a study that names none: the divergence, and what its budget limits first; none where that is nothing."""
    first = limited_metric(str(next(iter(budget)))) if isinstance(budget, dict) and budget else None
    return ("divergence", first.name) if first else ()


def _counted(objectives: Sequence[str], budget: Mapping[str, float]) -> set[str]:
    return {*objectives[1:], *(metric.name for metric in map(limited_metric, budget) if metric)}


class StudyConfig(Strict):
    """Everything a study is made of, but where its folder is.

    ``task`` is ``auto``, a known task or a dotted path to a subclass of ``lrsearch.Task``; ``output`` names the output that counts,
    where there are several. ``output: {NAME: WEIGHT, …}`` counts several, and ``task: {NAME: TASK, …}`` says what each is.
    Objectives are ``divergence`` (``kl`` for short) or ``metric``, then costs.
    ``plugins`` are modules of the user's to import, which register formats, patterns, backends, metrics and samplers. They are
    imported where the user gives the file (:func:`lrsearch.spec.registry.load_plugins`), and not for having been read from a folder.
    """

    name: Name = "study"
    plugins: tuple[ModuleName, ...] = ()
    model: ModelConfig | None = None
    data: DataConfig | None = None
    budget: Annotated[dict[str, float], Field(default_factory=dict)]  # sizes such as "128 KiB" are read into bytes
    task: TaskName | Tasks = "auto"
    output: str | int | OutputWeights | None = None
    objectives: tuple[str, ...] = ("divergence", "params")  # by default what the budget limits first, instead of params
    space: Annotated[Space, BeforeValidator(_auto_space), Field(default="auto", validate_default=True)]
    search: SearchConfig = SearchConfig()
    proxy: ProxyConfig = ProxyConfig()
    weights: WeightsConfig = WeightsConfig()
    deploy: DeployConfig = DeployConfig()
    latency: LatencyConfig | None = None
    recover: RecoverConfig = RecoverConfig()
    device: str = "cpu"

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        """``weights`` was ``storage`` once, which is to say where trials are kept."""
        if not isinstance(data, dict) or not isinstance(data.get("storage"), dict) or data["storage"].keys() - {"values"}:
            return data
        if "weights" in data:
            raise ValueError("storage is the former name of weights: give weights alone")
        log.warning("storage: {values: ...} is called weights: {values: ...} now")
        return {"weights" if key == "storage" else key: value for key, value in data.items()}

    @model_validator(mode="before")
    @classmethod
    def _meant(cls, data: Any) -> Any:
        """A budget and no objectives: the cost that is compared is the one that is limited, the first where there are several."""
        found = _compared(data.get("budget")) if isinstance(data, dict) and data.get("objectives") is None else None
        return {**data, "objectives": found} if found else data

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return value
        if unknown := next(filter(None, map(unknown_limit, value)), ""):
            raise ValueError(unknown)
        limits = dict(Budget(**value).items())
        return {key: limits[key] for key in value if key in limits}  # in the user's order: the first is compared

    @model_validator(mode="after")
    def _several_outputs(self) -> "StudyConfig":
        if isinstance(self.task, dict):
            if unfit := next((t for t in self.task.values() if t == "auto"), None):
                raise ValueError(f"task of several outputs names one for each; got {unfit}")
            if self.output is not None and (not isinstance(self.output, dict) or self.output.keys() != self.task.keys()):
                raise ValueError(f"output must weigh the outputs that task names, {', '.join(self.task)}; got {self.output}")
        return self

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """``kl`` is what the divergence of a softmax is called."""
        return [FORMER_NAMES.get(o, o) if isinstance(o, str) else o for o in value] if isinstance(value, list | tuple) else value

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        ok = len(value) >= 2 and value[0] in ("divergence", "metric") and len(set(value)) == len(value)
        if not ok or any(m not in METRICS for m in value[1:]):
            raise ValueError(f"needs divergence (kl) or metric first, then one or more of {METRICS.known}; {METRICS.own}")
        return value

    @property
    def auto_space(self) -> bool:
        """Whether the space is that of ``auto``."""
        return self.space == auto_space(self.counted)

    @property
    def derived(self) -> set[str]:
        """The settings that follow from others, as far as one can see: with other settings they may be others."""
        objectives = self.objectives == (_compared(self.budget) or type(self).model_fields["objectives"].default)
        return {name for name, so in (("space", self.auto_space), ("objectives", objectives)) if so}

    @property
    def counted(self) -> set[str]:
        """The cost metrics in objectives and budgets."""
        return _counted(self.objectives, self.budget)

    @property
    def about_latency(self) -> list[str]:
        """The budgets and objectives that are latencies."""
        return [key for key in (*self.budget, *self.objectives) if key in ("latency_ms", "latency_ratio")]

    @model_validator(mode="after")
    def _latency(self) -> "StudyConfig":
        asked = self.about_latency
        if self.latency is None and (asked or any(rule.rank_multiple == "auto" for rule in self.space.rules)):
            raise ValueError(f"{asked[0] if asked else 'rank_multiple: auto'} needs latency, such as latency: {{backend: onnxruntime}}")
        if self.latency and self.latency.backend in ("torch", "torch-compile") and self.deploy.precision == "int8":
            raise ValueError("deploy.precision int8 needs a latency.backend that reads ONNX: onnxruntime or openvino")
        return self
