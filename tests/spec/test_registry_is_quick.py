"""Looking up what is no format happens for every choice of every layer, so it must not read the metadata of all installed packages."""

from lrsearch.spec import registry
from lrsearch.spec.cost import layer_cost
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan


def test_entry_points_are_read_once_for_a_path_however_many_costs_are_asked_for(monkeypatch, tmp_path):
    reads, read = [], registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda **group: reads.append(1) or read(**group))
    monkeypatch.syspath_prepend(tmp_path / "one")
    layer = LayerSpec("fc", "linear", (10, 20))
    assert {layer_cost(layer, LayerPlan(density=0.5)).params for _ in range(50)} == {100}
    assert len(reads) == 1
    monkeypatch.syspath_prepend(tmp_path / "two")  # a package may be there
    assert FORMATS.get("dense") is None
    assert len(reads) == 2
