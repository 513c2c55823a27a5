import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import Block, Column, NofM, Row, Unstructured, pattern

LINEAR = LayerSpec("fc", "linear", (6, 8))
CONV = LayerSpec("conv", "conv2d", (6, 4, 3, 3))
GROUPED = LayerSpec("grouped", "conv2d", (6, 4, 3, 3), 2)
DEPTHWISE = LayerSpec("depthwise", "conv2d", (6, 1, 3, 3), 6)
NAMES = ("unstructured", "row", "column", "2:4", "1:4", "block2x4", "block3x2")


@pytest.mark.parametrize(
    ("name", "parsed", "density"),
    [
        ("unstructured", Unstructured(), None),
        ("row", Row(), None),
        ("column", Column(), None),
        ("2:4", NofM(2, 4), 0.5),
        ("1:16", NofM(1, 16), 0.0625),
        ("block4x1", Block(4, 1), None),
        ("block12x32", Block(12, 32), None),
    ],
)
def test_names(name, parsed, density):
    assert pattern(name) == parsed
    assert pattern(name).density == density


@pytest.mark.parametrize(
    "name", ["", "rows", "n:m", "block", "0:4", "4:4", "5:4", "-1:4", "2:4:8", "block1x1", "block0x4", "block4", "block4x", "2:4 ", "Row"],
)
def test_other_names_are_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"unstructured, column, row, n:m such as 2:4, or a block such as block4x4"):
        pattern(name)


@pytest.mark.parametrize(
    ("name", "layer", "atom", "atoms"),
    [
        ("unstructured", CONV, 1, 216),
        ("2:4", CONV, 1, 216),
        ("row", CONV, 36, 6),
        ("row", LINEAR, 8, 6),
        ("column", CONV, 54, 4),
        ("column", LINEAR, 6, 8),
        ("block2x4", CONV, 8, 27),
        ("block3x2", GROUPED, 6, 36),
    ],
)
def test_atoms_by_hand(name, layer, atom, atoms):
    assert (pattern(name).atom(layer), pattern(name).atoms(layer)) == (atom, atoms)


@pytest.mark.parametrize(
    ("name", "density", "kept"),
    [("unstructured", 0.333, 16), ("row", 0.3, 16), ("row", 0.05, 0), ("column", 0.3, 12), ("2:4", 0.5, 24), ("block2x4", 0.6, 32)],
)
def test_kept_are_the_values_of_whole_atoms(name, density, kept):
    assert pattern(name).kept(LINEAR, density) == kept


@given(st.sampled_from(NAMES), st.sampled_from([LINEAR, CONV]), st.floats(0, 1))
def test_kept_is_within_half_an_atom_of_the_density(name, layer, density):
    kind = pattern(name)
    kept = kind.kept(layer, density)
    assert kept % kind.atom(layer) == 0
    assert 0 <= kept <= layer.numel
    assert abs(kept - density * layer.numel) <= kind.atom(layer) / 2 + 1e-6


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("row", GROUPED, "not offered for grouped"),
        ("column", GROUPED, "not offered for grouped"),
        ("row", DEPTHWISE, "not offered for grouped"),
        ("2:4", DEPTHWISE, "1 input channels per group are no multiple of 4"),
        ("1:3", CONV, "4 input channels per group are no multiple of 3"),
        ("block2x3", LINEAR, "8 input channels per group are no multiple of 3"),
        ("block4x4", LINEAR, "6 outputs per group are no multiple of 4"),
        ("block2x4", GROUPED, "3 outputs per group are no multiple of 2"),
        ("block2x1", DEPTHWISE, "1 outputs per group are no multiple of 2"),
    ],
)
def test_refusals_have_a_reason(name, layer, reason):
    assert reason in pattern(name).refusal(layer)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("unstructured", DEPTHWISE), ("row", CONV), ("column", LINEAR), ("2:4", GROUPED), ("block3x2", GROUPED), ("block2x4", CONV),
    ],
)  # fmt: skip
def test_what_fits_is_not_refused(name, layer):
    assert pattern(name).refusal(layer) == ""


@pytest.mark.parametrize(
    ("name", "kept", "computed"),
    [
        ("unstructured", 24, 48), ("2:4", 24, 48), ("block2x4", 24, 48), ("row", 24, 24), ("column", 24, 24),
        ("unstructured", 0, 0), ("row", 0, 0),
    ],
)  # fmt: skip
def test_a_dense_runtime_leaves_out_whole_rows_and_columns_alone(name, kept, computed):
    assert pattern(name).computed(LINEAR, kept) == computed
