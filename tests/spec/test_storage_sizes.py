"""Sizes alone; that files really have them is tested in conformance."""

from math import comb

import pytest
import torch

from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan
from lrsearch.spec.storage import SparseStorage, combination_bits, elias_fano_bits, header_bytes, sparse_storage, value_bytes

LAYER = LayerSpec("fc", "linear", (64, 128))
DENSITIES = [0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99]


@pytest.mark.parametrize(
    ("plan", "values", "stored"),
    [
        (LayerPlan(), "float32", SparseStorage("dense", 8192, 0)),
        (LayerPlan(density=0.0), "float32", SparseStorage("dense", 0, 0)),
        (LayerPlan(density=0.95), "float32", SparseStorage("bitmask", 7782, 8192)),
        (LayerPlan(density=0.95), "int8", SparseStorage("dense", 8192, 0)),
        (LayerPlan(density=0.3), "float32", SparseStorage("bitmask", 2458, 8192)),
        (LayerPlan(density=0.0625), "float32", SparseStorage("elias-fano", 512, 512 * 4 + 512 + 511)),
        (LayerPlan(density=0.5, pattern="2:4"), "int8", SparseStorage("combination", 4096, 3 * 2048)),
        (LayerPlan(density=0.5, pattern="1:2"), "int8", SparseStorage("combination", 4096, 4096)),
        (LayerPlan(density=0.5, pattern="column"), "float32", SparseStorage("bitmask", 4096, 128)),
    ],
)
def test_the_smallest_way_is_taken(plan, values, stored):
    assert sparse_storage(LAYER, plan, values) == stored


@pytest.mark.parametrize("n", [1, 2, 100, 4096, 65536])
def test_elias_fano_is_smaller_than_16_bit_indices(n):
    for k in {max(1, round(n * density)) for density in DENSITIES} | {k for k in (1, 2, 3, 4, n) if k <= n}:
        low, unary = elias_fano_bits(n, k)
        size = -(-(k * low + unary) // 8)
        assert size <= 2 * k + (k < 3), (n, k)  # one or two atoms of very many may take a byte more


@pytest.mark.parametrize("density", DENSITIES)
def test_elias_fano_is_smaller_than_8_bit_deltas_on_random_positions(density):
    """Deltas of one byte need a filler, a stored zero of at least one byte, at each gap of 256 and more."""
    mask = torch.rand(2**18, generator=torch.Generator().manual_seed(0)) < density
    places = mask.nonzero()[:, 0]
    gaps = torch.diff(places, prepend=torch.tensor([-1])) - 1
    fillers = int((gaps // 256).sum())
    low, unary = elias_fano_bits(len(mask), len(places))
    assert (len(places) * low + unary) / 8 < len(places) + 2 * fillers


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (3, 7), (31, 62)])
def test_combinations_take_the_fewest_whole_bits(n, m):
    bits = combination_bits(pattern(f"{n}:{m}"))
    assert 2 ** (bits - 1) < comb(m, n) <= 2**bits


def test_combinations_are_for_groups_that_fit_an_integer():
    assert combination_bits(pattern("64:128")) == combination_bits(pattern("unstructured")) == 0


def test_no_value_is_stored_wider_than_it_is():
    assert [value_bytes(v, 4) for v in ("float32", "float16", "bfloat16", "int8")] == [4, 2, 2, 1]
    assert [value_bytes(v, 2) for v in ("float32", "float16", "bfloat16")] == [2, 2, 2]
    assert value_bytes("float32", 8) == 8


def test_the_header_has_room_for_every_name():
    assert header_bytes([]) % 8 == 0
    assert header_bytes(["a" * 80]) - header_bytes([]) >= 80
    assert header_bytes(['"']) >= header_bytes(["a"])
