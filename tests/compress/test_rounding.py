import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.compress.rounding import dequantized, quantized, rounded, stored_type
from lrsearch.errors import ScoreError

TYPES = ["float32", "float16", "bfloat16", "int8"]
STEP = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}


@pytest.mark.parametrize("values", TYPES)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-12, 4))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_rounding_is_near_and_rounding_again_changes_nothing(values, seed, exponent):
    weight = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    once = rounded(weight, values, "here")
    bound = weight.abs().amax((1, 2), keepdim=True) / 250 if values == "int8" else STEP[values] * weight.abs() + 2**-25
    assert ((once - weight).abs() <= bound).all()
    assert once.dtype == weight.dtype
    assert torch.equal(rounded(once, values, "here"), once)


@given(st.floats(2.0**-100, 2.0**100, width=32))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_the_largest_of_a_row_becomes_127_steps_and_scales_come_back(largest):
    integers, scale = quantized(torch.tensor([[largest, -largest / 3]]))
    assert int(integers[0, 0]) == 127
    again = quantized(dequantized(integers, scale))
    assert torch.equal(again[0], integers)
    assert torch.equal(again[1], scale)


def test_a_scale_of_the_last_place_of_bfloat16_still_comes_back():
    """Every significand of 8 bits, and values halfway between two of them."""
    largest = torch.cat([127 * (128 + torch.arange(128)) / 128, 127 * (128.5 + torch.arange(127)) / 128])[:, None]
    integers, scale = quantized(largest)
    assert (integers == 127).all()
    assert torch.equal(quantized(dequantized(integers, scale))[1], scale)


def test_rows_of_zeros_and_of_next_to_nothing_are_zero():
    weight = torch.tensor([[0.0, 0.0], [1e-38, 0.0], [2.0, -2.0]])
    assert torch.equal(rounded(weight, "int8", "here") == 0, torch.tensor([[True, True], [True, True], [False, False]]))


def test_each_row_has_a_scale_of_its_own():
    weight = torch.tensor([[1.0, 0.5], [100.0, 0.3]])
    small, large = rounded(weight, "int8", "here")
    assert abs(float(small[1]) - 0.5) < 0.01
    assert float(large[1]) == 0.0


def test_what_float16_cannot_hold_is_refused_and_bfloat16_can():
    weight = torch.tensor([[1.0, 1e6]])
    with pytest.raises(ScoreError, match="^head: every weight must fit into float16; got 1000000.0. Set weights.values to bfloat16"):
        rounded(weight, "float16", "head")
    assert rounded(weight, "bfloat16", "head").isfinite().all()


def test_nothing_becomes_wider():
    assert stored_type(torch.bfloat16, "float16") == torch.bfloat16
    assert stored_type(torch.float64, "float16") == torch.float16
    assert stored_type(torch.float64, "float32") == torch.float64
    weight = torch.randn(3, 3).bfloat16()
    assert rounded(weight, "float16", "here") is weight
