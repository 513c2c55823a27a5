"""What each pattern keeps, against a description of its atoms value by value."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.compress.sparsify import contract, expand, largest, pack_bits, select, support, unpack_bits
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern

NAMES = ("unstructured", "row", "column", "2:4", "1:3", "block2x3", "block3x1", "block1x4")


@st.composite
def problems(draw, names=NAMES):
    """A layer, a pattern it can have, and how many values to keep: whole atoms."""
    name = draw(st.sampled_from(names))
    kind = pattern(name)
    groups = 1 if name in ("row", "column") else draw(st.integers(1, 2))
    rows = draw(st.integers(1, 3)) * (kind.height if kind.name == "block" else 1)
    channels = draw(st.integers(1, 3)) * (kind.width if kind.name in ("block", "n:m") else 1)
    kernel = draw(st.sampled_from([(), (1, 1), (2, 3)]))
    layer = LayerSpec("layer", "conv2d" if kernel else "linear", (groups * rows, channels, *kernel), groups)
    if kind.density:
        return layer, kind, round(layer.numel * kind.density)
    return layer, kind, draw(st.integers(0, kind.atoms(layer))) * kind.atom(layer)


def atoms_of(layer, kind):
    """For every value: the atom it belongs to, and the set of atoms among which those to keep are chosen."""
    g, rows, columns = layer.matrix_shape
    kernel = columns // layer.channels
    atom, contest = {}, {}
    for i, r, c, k in product(range(g), range(rows), range(layer.channels), range(kernel)):
        at = i, r, c * kernel + k
        height, width = getattr(kind, "height", 1), getattr(kind, "width", 1)
        block = i, r // height, c // width, k
        atom[at] = {"row": (r,), "column": (c,), "block": block}.get(kind.name, (i, r, c, k))
        contest[at] = (i, r, c // width, k) if kind.name == "n:m" else ()
    return atom, contest


# Few different values, so that there are ties.
seeds = st.integers(0, 2**31)


def values_of(layer, seed):
    return torch.randint(-3, 4, layer.matrix_shape, generator=torch.Generator().manual_seed(seed)).float()


@settings(deadline=None)
@given(st.integers(1, 40), st.data(), seeds, st.sampled_from([1e-40, 0.3, 1e30]), st.booleans())
def test_the_largest_are_those_of_the_support(size, data, seed, scale, ties):
    """Ties, zeros, denormals and huge values included."""
    kept, generator = data.draw(st.integers(0, size)), torch.Generator().manual_seed(seed)
    values = torch.randint(-3, 4, (1, 1, size), generator=generator).float() if ties else torch.randn(1, 1, size, generator=generator)
    values = values * scale
    found = largest(values, kept)
    assert torch.equal(found, torch.where(support(values, kept), values, 0.0))
    assert values.abs().flatten().sort(descending=True).values[:kept].equal(found[support(values, kept)].abs().sort(descending=True).values)


@settings(deadline=None)
@given(problems(), seeds)
def test_exactly_so_many_values_are_kept_and_atoms_are_kept_or_dropped_whole(problem, seed):
    layer, kind, kept = problem
    mask = select(values_of(layer, seed), layer, kind, kept)
    assert (mask.dtype, mask.shape, int(mask.sum())) == (torch.bool, layer.matrix_shape, kept)
    fate = {}
    for at, atom in atoms_of(layer, kind)[0].items():
        assert fate.setdefault(atom, bool(mask[at])) == bool(mask[at])


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(st.data(), seeds)
def test_no_atom_is_dropped_for_one_of_less_energy(name, data, seed):
    layer, kind, kept = data.draw(problems((name,)))
    values = values_of(layer, seed)
    mask = select(values, layer, kind, kept)
    atoms, contests = atoms_of(layer, kind)
    energy, least, most = {}, {}, {}
    for at, atom in atoms.items():
        energy[atom] = energy.get(atom, 0.0) + float(values[at]) ** 2
    for at, atom in atoms.items():
        side, best = (least, min) if mask[at] else (most, max)
        side[contests[at]] = best(side.get(contests[at], energy[atom]), energy[atom])
    assert all(least[contest] >= most[contest] for contest in least.keys() & most.keys())


@settings(deadline=None)
@given(problems(("2:4", "1:3", "3:4")), seeds)
def test_n_of_every_m_neighbouring_channels_are_kept(problem, seed):
    layer, kind, kept = problem
    mask = select(values_of(layer, seed), layer, kind, kept)
    of_each = {}
    for at, contest in atoms_of(layer, kind)[1].items():
        of_each[contest] = of_each.get(contest, 0) + int(mask[at])
    assert set(of_each.values()) == {kind.height}


@settings(deadline=None)
@given(problems(), seeds)
def test_contract_gives_one_bit_for_each_atom_and_expand_takes_it_back(problem, seed):
    layer, kind, kept = problem
    mask = select(values_of(layer, seed), layer, kind, kept)
    atoms = contract(mask, layer, kind)
    assert atoms.shape == (kind.atoms(layer),)
    assert int(atoms.sum()) * kind.atom(layer) == kept
    assert torch.equal(expand(atoms, layer, kind), mask)


@settings(deadline=None)
@given(problems(), st.data())
def test_expand_spreads_an_atoms_bit_over_its_values_and_contract_takes_it_back(problem, data):
    layer, kind, _ = problem
    n = kind.atoms(layer)
    atoms = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    mask = expand(atoms, layer, kind)
    assert mask.shape == layer.matrix_shape
    assert int(mask.sum()) == int(atoms.sum()) * kind.atom(layer)
    assert len({atom for at, atom in atoms_of(layer, kind)[0].items() if mask[at]}) == int(atoms.sum())
    assert torch.equal(contract(mask, layer, kind), atoms)


@pytest.mark.parametrize("name", NAMES)
def test_all_or_nothing_needs_no_pattern(name):
    layer = LayerSpec("layer", "linear", (6, 12))
    values = torch.randn(1, 6, 12)
    assert not select(values, layer, pattern(name), 0).any()
    assert select(values, layer, pattern(name), 72).all()


@pytest.mark.parametrize("kept", [0, 1, 7, 12])
def test_support_is_exact_even_among_ties(kept):
    assert int(support(torch.zeros(3, 4), kept).sum()) == kept
    values = torch.tensor([[3.0, -4.0, 0.5], [1.0, -2.0, 0.0]])
    assert (values * support(values, 2)).tolist() == [[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None)
def test_bits_round_trip(bits):
    mask = torch.tensor(bits)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(bits) // 8)
    assert packed.tolist() == [sum(b << i for i, b in enumerate(bits[k : k + 8])) for k in range(0, len(bits), 8)]
    assert torch.equal(unpack_bits(packed, len(bits)), mask)
