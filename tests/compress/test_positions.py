import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.compress.positions import decode, encode
from lrsearch.compress.sparsify import select
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.storage import combination_bits, elias_fano_bits


@st.composite
def masks(draw):
    """A layer, a plan of its S, a code that suits the pattern, and any mask of the plan."""
    name = draw(st.sampled_from(["unstructured", "1:2", "2:4", "4:8", "7:8", "block2x2", "column", "row"]))
    kind = pattern(name)
    layer = LayerSpec("0", "conv2d", (2 * draw(st.integers(1, 4)), 8 * draw(st.integers(1, 3)), *draw(st.sampled_from([(1, 1), (3, 2)]))))
    atoms = kind.atoms(layer)
    plan = LayerPlan(density=kind.density or draw(st.integers(1, max(1, atoms - 1))) / atoms, pattern=name)
    codes = ["bitmask", "elias-fano", *(["combination"] if combination_bits(kind) else [])]
    values = torch.randn(layer.matrix_shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return layer, plan, draw(st.sampled_from(codes)), select(values, layer, kind, plan.kept(layer))


@given(masks())
@settings(deadline=None, max_examples=200, derandomize=True)
def test_every_code_gives_the_mask_back_in_the_bytes_predicted(drawn):
    layer, plan, code, mask = drawn
    packed, kind = encode(mask, layer, plan, code), pattern(plan.pattern)
    atoms, kept = kind.atoms(layer), plan.kept(layer) // kind.atom(layer)
    low, unary = elias_fano_bits(atoms, kept)
    width = getattr(kind, "width", 1)
    bits = {"bitmask": atoms, "elias-fano": kept * low + unary, "combination": layer.numel // width * combination_bits(kind)}
    assert len(packed) == -(-bits[code] // 8)
    assert torch.equal(decode(packed, layer, plan, code), mask)


def test_elias_fano_by_hand():
    """2, 3, 7 of 8: low bits 0, 1, 1; high parts 1, 1, 3 make ones at 1 + 0, 1 + 1, 3 + 2 of the next 6 bits."""
    mask = torch.tensor([[[0, 0, 1, 1, 0, 0, 0, 1]]]).bool()
    packed = encode(mask, LayerSpec("0", "linear", (1, 8)), LayerPlan(density=3 / 8), "elias-fano")
    assert packed.tolist() == [0b00110_110, 0b1]


@pytest.mark.parametrize("code", ["bitmask", "elias-fano"])
@pytest.mark.parametrize("byte", [0, 255])
def test_bytes_that_mark_another_number_of_positions_are_refused(code, byte):
    layer, plan = LayerSpec("0", "linear", (8, 16)), LayerPlan(density=0.1)
    low, unary = elias_fano_bits(128, plan.kept(layer))
    size = 16 if code == "bitmask" else -(-(plan.kept(layer) * low + unary) // 8)
    with pytest.raises(ValueError, match="the plan|position"):
        decode(torch.full((size,), byte, dtype=torch.uint8), layer, plan, code)
