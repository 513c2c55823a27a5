"""The search space of a study as JSON: all that its decoder knows, so that questions about it need neither the model nor the data."""

from dataclasses import asdict
from typing import Any

import numpy as np

from lrsearch.errors import StudyError
from lrsearch.search.decoder import Decoder
from lrsearch.spec.atomic import read_sealed
from lrsearch.spec.cost import Cost, CostModel
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.study.study_folder import StudyFolder


def save(decoder: Decoder, folder: StudyFolder) -> None:
    """Write what ``decoder`` knows to ``folder``."""
    costs = decoder.costs
    menus: dict[str, list[dict[str, Any]]] = {name: [] for name in decoder.names}
    for (layer, plan), damage in zip(decoder.choices, decoder.damage.tolist(), strict=True):
        entry = {"plan": asdict(plan), "damage": damage}
        menus[layer.name].append(entry | ({"latency_ms": costs.latency[layer.name][plan]} if costs.latency else {}))
    whole = {
        "layers": [asdict(layer) for layer in costs.layers], "fixed": costs.fixed.to_dict(),
        "dense": costs.dense.to_dict(), "values": costs.values, "limits": decoder.limits, "menus": menus,
        "spared": {name: [[asdict(own), asdict(other), ms] for (own, other), ms in each.items()] for name, each in costs.spared.items()},
    }
    folder.save(folder.space, whole)


def load(folder: StudyFolder) -> Decoder:
    """The decoder of the study in ``folder``.

    Raises:
        StudyError: the file is missing or damaged.
    """
    path = folder.space
    try:
        return _decoder(read_sealed(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StudyError(
            "must be the search space of a study", value=f"{type(error).__name__}: {error}".splitlines()[0], place=str(path),
            remedy="Run lrsearch search on this folder again; it writes the file anew.",
        ) from error


def _decoder(data: dict[str, Any]) -> Decoder:
    layers = tuple(LayerSpec(**layer) for layer in data["layers"])
    plans = {name: [LayerPlan(**entry["plan"]) for entry in entries] for name, entries in data["menus"].items()}
    latency = {
        name: {plan: entry["latency_ms"] for plan, entry in zip(plans[name], entries, strict=True)}
        for name, entries in data["menus"].items() if "latency_ms" in entries[0]
    }
    spared = {
        name: {(LayerPlan(**own), LayerPlan(**other)): ms for own, other, ms in each} for name, each in data.get("spared", {}).items()
    }
    costs = CostModel(Cost.from_dict(data["fixed"]), layers, Cost.from_dict(data["dense"]), data["values"], latency, spared)
    decoder = Decoder(costs, plans, data["limits"])
    decoder.learn_damage({name: np.array([entry["damage"] for entry in entries]) for name, entries in data["menus"].items()})
    return decoder
