import pytest
import torch

from lrsearch.errors import ConfigError, DataError
from lrsearch.task.augment import flip_crop, load_augment


def test_flip_crop_moves_and_mirrors_each_image_by_itself():
    image = torch.arange(1.0, 257).view(1, 1, 16, 16).expand(64, 3, 16, 16)
    found = flip_crop(image)
    assert found.shape == image.shape
    assert torch.equal(found[:, 0], found[:, 2])
    padded = torch.nn.functional.pad(image[0, 0], (2, 2, 2, 2))
    windows = [padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    mirrored = [torch.nn.functional.pad(image[0, 0].flip(-1), (2, 2, 2, 2))[i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    seen = [next(k for k, w in enumerate([*windows, *mirrored]) if torch.equal(row[0], w)) for row in found]
    assert len(set(seen)) > 20
    assert 10 < sum(k < 25 for k in seen) < 54


def test_the_seed_decides():
    x = torch.randn(4, 3, 8, 8)
    torch.manual_seed(3)
    first = flip_crop(x)
    torch.manual_seed(3)
    assert torch.equal(flip_crop(x), first)
    assert not torch.equal(flip_crop(x), first)


def test_flip_crop_is_for_images():
    with pytest.raises(DataError, match=r"flip-crop needs images.*got \(4, 7\)"):
        flip_crop(torch.ones(4, 7))


def test_none_leaves_the_inputs():
    x = torch.randn(4, 3)
    assert load_augment("none", x) is None


@pytest.mark.parametrize(
    ("inputs", "changed"),
    [(torch.ones(2, 3, 8, 8), True), (torch.ones(2, 1, 8, 8), False), (torch.ones(2, 3, 8, 4), False), (torch.ones(2, 3), False),
     (torch.ones(2, 3, 8, 8, dtype=torch.uint8), False), ({"x": torch.ones(2, 3, 8, 8)}, False)],
)
def test_auto_changes_colour_images_alone(inputs, changed):
    assert load_augment("auto", inputs) is (flip_crop if changed else None)


def test_a_function_of_the_users(module):
    name = module("def negated(x):\n    return -x\n")
    assert torch.equal(load_augment(f"{name}:negated", None)(torch.ones(2, 3)), -torch.ones(2, 3))


@pytest.mark.parametrize(
    ("body", "message"),
    [("x[1:]", r"must return as many inputs; got \(1, 3\)"), ("None", "must return as many inputs; got NoneType"),
     ("x.nothing", "must run on a batch of inputs; got AttributeError")],
)
def test_what_it_returns_is_checked(module, body, message):
    name = module(f"def f(x):\n    return {body}\n")
    with pytest.raises(ConfigError, match=rf"recover\.augment: .*{message}"):
        load_augment(f"{name}:f", None)(torch.ones(2, 3))
