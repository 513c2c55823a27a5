"""Gram matrices and sketches beyond the cap are on disk."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lrsearch.compress.inventory import inventory
from lrsearch.profile.statistics import Grams, collect


def blocks(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def collected(tiny_model, tiny_data, layers, tmp_path):
    def collected(cap, folder=tmp_path / "blocks"):
        x = tiny_data[0]
        return collect(tiny_model, layers, x[:100].split(50), x[100:].split(30), folder, cap)

    return collected


SIZES = {"stem": 27**2, "depthwise": 16 * 9**2, "grouped": 4 * 36**2, "pointwise": 16**2, "head": 24**2}
SMALL = ("pointwise", "head", "stem")


def names(layers, parts=("fit", "check")):
    """The files are numbered by size, as names may be anything."""
    order = sorted(SIZES, key=SIZES.get)
    return {f"{part}/{order.index(name)}.gram" for part in parts for name in layers}


@pytest.mark.parametrize(
    ("cap", "on_disk"),
    [
        (0, set(SIZES)),
        (2 * 4 * sum(SIZES[n] for n in SMALL), set(SIZES) - set(SMALL)),
        (2 * 4 * sum(SIZES[n] for n in SMALL) - 2, set(SIZES) - {"pointwise", "head"}),
        (2 * 4 * sum(SIZES.values()), set()),
    ],
    ids=["no memory", "memory for three", "a byte too little for three", "memory for all"],
)
def test_the_widest_layers_go_to_disk_and_the_statistics_are_the_same(collected, tmp_path, cap, on_disk):
    expected, found = collected(2**40, None), collected(cap)
    assert {b for b in blocks(tmp_path / "blocks") if b.endswith(".gram")} == names(on_disk)
    for name in SIZES:
        for part in ("gram", "check", "sketches"):
            assert torch.equal(getattr(found[name], part), getattr(expected[name], part)), (name, part)


def test_sketches_go_to_disk_once_they_no_longer_fit(tiny_model, tiny_data, layers, tmp_path):
    """Values of two bytes; the second of three goes beyond the cap."""
    size, batches = 2 * sum(layer.numel for layer in layers), tiny_data[0].split(60)
    for cap, files in ((3 * size, set()), (2 * size - 1, {"sketches/1.safetensors", "sketches/2.safetensors"})):
        collect(tiny_model, layers, [], batches, tmp_path / str(cap), cap)
        assert {b for b in blocks(tmp_path / str(cap)) if b.startswith("sketches")} == files


def test_blocks_that_a_killed_run_left_are_not_added_to(collected, tmp_path):
    expected = collected(2**40, None)
    for part in ("fit", "check"):
        (tmp_path / "blocks" / part).mkdir(parents=True)
        torch.from_file(str(tmp_path / "blocks" / part / "head.gram"), shared=True, size=24 * 24).fill_(1e6)
    assert torch.equal(collected(0)["head"].gram, expected["head"].gram)


def test_without_a_folder_all_stay_in_memory(collected, tmp_path):
    assert collected(0, None)["head"].sketches.any()
    assert not any(tmp_path.iterdir())


def test_inputs_count_once_for_every_position(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 7, 4)
    grams = Grams(inventory(model, x).layers, tmp_path, 0, torch.device("cpu"))
    grams.add("0", model[0], x[:2])
    grams.add("0", model[0], x[2:])
    rows = x.flatten(0, 1)
    torch.testing.assert_close(grams.mean("0"), (rows.T @ rows / 35)[None])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_matrices_on_disk_take_no_memory_between_uses(tmp_path):
    model, x = nn.Sequential(nn.Linear(256, 3)), torch.randn(8, 256)
    grams = Grams(inventory(model, x).layers, tmp_path, 0, torch.device("cpu"))
    for use in (lambda: grams.add("0", model[0], x), lambda: grams.mean("0")):
        use()
        assert resident(tmp_path / "0.gram") == 0
    torch.testing.assert_close(grams.mean("0"), (x.T @ x / 8)[None])


def resident(path) -> int:
    """kB of the file that this process has in its memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith(str(path)))
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])
