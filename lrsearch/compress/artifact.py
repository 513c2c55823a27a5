"""A compressed model as a folder: ``plan.json`` and ``weights.safetensors``, nothing pickled."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import Conv
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ArtifactError, ConfigError
from lrsearch.spec.plan import Plan

PLAN, WEIGHTS = "plan.json", "weights.safetensors"
_REMEDY = "Use a model folder that a study wrote, with the base model it was made from."


def save(model: nn.Module, plan: Plan, folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``model`` (compressed under ``plan``) to ``folder``: whole or not at all.

    Args:
        about: JSON data kept beside the plan (where the base model comes from, scores, costs).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        save_model(model, str(scratch / WEIGHTS))
        (scratch / PLAN).write_text(json.dumps({**about, "plan": plan.to_dict()}, indent=1) + "\n")
        if folder.exists():
            os.replace(folder, aside := scratch.with_name(f"{scratch.name}-old"))
            os.replace(scratch, folder)
            shutil.rmtree(aside)
        else:
            os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan in ``folder`` and the rest of its ``plan.json``.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    place = str(folder / PLAN)
    try:
        about = json.loads((folder / PLAN).read_text())
        plan = Plan.from_dict(about.pop("plan"), place)
    except OSError as error:
        raise ArtifactError("the folder must hold a plan.json", value=error.strerror or "?", place=place, remedy=_REMEDY) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError("plan.json must be as lrsearch wrote it", value=str(error), place=place, remedy=_REMEDY) from None
    return plan, about


def load(folder: Path, base: nn.Module) -> nn.Module:
    """The compressed model in ``folder``; ``base``, a fresh dense model, is not changed.

    Raises:
        ArtifactError: a file is missing or damaged, or belongs to another model.
    """
    plan, about = read_plan(folder)
    remedy, place = _REMEDY, str(folder / PLAN)
    try:
        base = prepare(base, about.get("split", ()))
    except (ConfigError, TypeError) as error:
        raise ArtifactError("the layers it splits must be layers of the base model", value=str(error), place=place, remedy=remedy) from None
    modules = dict(base.named_modules())
    strangers = [n for n in plan.layers if not isinstance(modules.get(n), nn.Linear | Conv)]
    if strangers:
        raise ArtifactError(
            "every layer of the plan must be a layer of the base model", value=strangers[0], place=place, remedy=remedy,
        )
    specs = {n: layer_spec(modules[n], n) for n in plan.layers}
    for name, layer_plan in plan.layers.items():
        if reason := layer_plan.refusal(specs[name]):
            rule = "every layer must be able to become what the plan says"
            raise ArtifactError(rule, value=reason, place=f"{place}: {name}", remedy=remedy)
    model = compress(base, specs.values(), plan)
    try:
        load_model(model, folder / WEIGHTS)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            "weights must be whole and fit the base model", value=str(error), place=str(folder / WEIGHTS), remedy=_REMEDY
        ) from None
    return model.eval()
