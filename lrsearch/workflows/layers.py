"""What can be compressed of a model, and what not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepared_copy
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.space import Space
from lrsearch.study.offered import offered
from lrsearch.study.surroundings import surroundings
from lrsearch.task.examples import Data
from lrsearch.task.forward import Inputs, device_of, moved
from lrsearch.workflows.materials import Materials, Study, model_or_study, settings_of


@dataclass(frozen=True)
class Layers:
    """The layers of a model, as a search sees them.

    Attributes:
        model: the prepared copy, in which fused layers are split.
        sample: two inputs.
        layers: that can be compressed.
        refused: name of any other module or parameter with a matrix → why it stays dense.
        shares: the same names → share of the model's parameters.
        menus: layer name → what it may become, dense first.
    """

    model: nn.Module
    sample: Inputs
    layers: tuple[LayerSpec, ...]
    refused: Mapping[str, str]
    shares: Mapping[str, float]
    menus: Mapping[str, Sequence[LayerPlan]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per layer, the largest share first; ``reason`` says why one stays dense."""
        whole = self.to_dict()
        rows = [*whole["layers"], *whole["refused"]]
        columns = ["layer", "kind", "weight", "share", "groups", "positions", "choices", "reason"]
        blank = {"kind": "", "reason": ""}
        return pd.DataFrame([blank | row for row in rows], columns=columns).sort_values("share", ascending=False, kind="stable")

    def __repr__(self) -> str:
        return f"{len(self.layers)} layers can be compressed, {len(self.refused)} stay dense\n{self.frame.to_string(index=False)}"

    def _repr_html_(self) -> str:
        table: str = self.frame.to_html(index=False, border=0, float_format="{:.3g}".format)
        return f"<p>{len(self.layers)} layers can be compressed, {len(self.refused)} stay dense</p>{table}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``layers`` and ``refused``."""
        rows = [
            {"layer": ", ".join(s.names), "kind": s.kind, "weight": list(s.weight_shape), "share": self.shares[s.name],
             "groups": s.groups, "positions": s.positions, "choices": len(self.menus[s.name])} for s in self.layers
        ]
        left = [{"layer": name, "share": self.shares[name], "reason": reason} for name, reason in self.refused.items()]
        return {"layers": rows, "refused": left}


@surroundings()
def layers(
    model: nn.Module | Study, calibration: Data | None = None, *, space: Space | str | None = None, **settings: Any,
) -> Layers:
    """What can be compressed, with how many choices, and what cannot, and why.

    Args:
        model: the dense model, which is not changed; or a study file.
        calibration: data, of which two inputs are used.
        space: a :class:`Space`, or the name or path of a space file.
        **settings: further keys of a study file.

    Raises:
        LrsearchError: one of its kinds, for anything a caller can mend.

    Example:
        >>> lrsearch.layers(model, (x, y)).frame
    """
    network, study = model_or_study(model)
    config = settings_of(study, settings, "lrsearch.layers", space=space)
    return found_layers(Materials.of(network, config, "calibration", calibration=calibration))


def found_layers(materials: Materials) -> Layers:
    """The layers of the model at hand."""
    space = materials.config.space
    model = prepared_copy(materials.model, space.split)
    sample = moved(materials.calibration.sample(), device_of(model))
    found = plain_layers(model, inventory(model, sample), sample)
    found, menus = offered(model, found, space, materials.config.counted, sample)
    return Layers(model, sample, found.layers, found.refused, found.shares, menus)
