"""What can be compressed of a model, and what not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.space import Space
from lrsearch.study.surroundings import surroundings
from lrsearch.workflows.materials import Data, Materials, Study, settings_of


@dataclass(frozen=True)
class Layers:
    """The layers of a model, as a search sees them.

    Attributes:
        model: the prepared copy, in which fused layers are split.
        sample: two inputs.
        layers: that can be compressed.
        refused: layer name → why it stays dense.
        menus: layer name → what it may become, dense first.
    """

    model: nn.Module
    sample: Tensor
    layers: tuple[LayerSpec, ...]
    refused: Mapping[str, str]
    menus: Mapping[str, Sequence[LayerPlan]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per layer that can be compressed."""
        return pd.DataFrame(self.to_dict()["layers"], columns=["layer", "kind", "weight", "groups", "positions", "choices"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``layers`` and ``refused``."""
        rows = [
            {"layer": s.name, "kind": s.kind, "weight": list(s.weight_shape), "groups": s.groups, "positions": s.positions,
             "choices": len(self.menus[s.name])} for s in self.layers
        ]
        return {"layers": rows, "refused": dict(self.refused)}


@surroundings()
def layers(
    model: nn.Module | Study, calibration: Data | None = None, *, space: Space | str | None = None, **settings: Any,
) -> Layers:
    """What can be compressed, with how many choices, and what cannot, and why.

    Args:
        model: the dense model, which is not changed; or a study file.
        calibration: (input, label) pairs, of which two inputs are used.
        space: a :class:`Space`, or the name or path of a space file.
        **settings: further keys of a study file.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.layers(model, (x, y)).frame
    """
    network, study = (model, None) if isinstance(model, nn.Module) else (None, model)
    config = settings_of(study, settings, "lrsearch.layers", space=space)
    return found_layers(Materials.of(network, config, "calibration", calibration=calibration))


def found_layers(materials: Materials) -> Layers:
    """The layers of the model at hand."""
    space = materials.config.space
    sample = next(materials.calibration.batches(2))[0]
    model = prepare(materials.model, space.split)
    found = inventory(model, sample)
    return Layers(model, sample, found.layers, found.refused, space.menus(found.layers, found.refused))
