import os

import pytest
import torch
from outputs import everything
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lrsearch.errors import ConfigError, DataError, ModelError
from lrsearch.spec.config import ModelConfig, SourceConfig
from lrsearch.task.sources import load_base, load_examples, resolve

ZOO = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def model(width=3):
    torch.manual_seed(0)
    return nn.Linear(2, width).train()

def number():
    return 3

def broken():
    raise OSError("no disk")

def data(kind="pair", n=10):
    x, y = torch.arange(2.0 * n).view(n, 2), torch.arange(n) % 3
    d = TensorDataset(x, y)
    return {"pair": (x, y), "list": [x, y], "dataset": d, "unequal": (x, y[1:]), "two datasets": (d, d), "none": None, "empty": []}[kind]

class Factory:
    @staticmethod
    def model():
        return model()

constant = 3
"""


@pytest.fixture
def zoo(module) -> str:
    return module(ZOO)


def test_dotted_paths_lead_to_functions(zoo):
    assert resolve(f"{zoo}:Factory.model", "here")().out_features == 3
    built = load_base(ModelConfig(call=f"{zoo}:model", args={"width": 5}))
    assert (built.out_features, built.training) == (5, False)


@pytest.mark.parametrize("path", ["nowhere_at_all:f", "{zoo}:missing", "{zoo}:Factory.missing", "{zoo}:constant", ".{zoo}:model"])
def test_dotted_paths_that_lead_nowhere(zoo, path):
    with pytest.raises(ConfigError, match=r"^here: must name"):
        resolve(path.format(zoo=zoo), "here")


@pytest.mark.parametrize("text", ["def model(:\n", "1 / 0\n", "import nowhere_at_all\n"], ids=["syntax", "raises", "imports"])
def test_a_module_that_cannot_be_imported(module, text):
    with pytest.raises(ConfigError, match=r"^model\.call"):
        load_base(ModelConfig(call=module(text) + ":model"))


@pytest.mark.parametrize(("call", "args"), [("number", {}), ("broken", {}), ("model", {"depth": 3})])
def test_a_function_that_builds_no_model(zoo, call, args):
    with pytest.raises(ModelError):
        load_base(ModelConfig(call=f"{zoo}:{call}", args=args))


def test_unknown_timm_name_lists_similar_ones():
    with pytest.raises(ModelError, match="resnet18"):
        load_base(ModelConfig(timm="resnet1"))


def test_timm_arguments_that_do_not_fit():
    with pytest.raises(ModelError, match="build"):
        load_base(ModelConfig(timm="resnet18", args={"wings": 2}))


CHECKPOINTS = {
    "w.safetensors": lambda state, path: save_file(state, path),
    "w.pt": lambda state, path: torch.save(state, path),
    "w.pth": lambda state, path: torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_are_loaded(zoo, tmp_path, name):
    state = {"weight": torch.full((3, 2), 7.0), "bias": torch.arange(3.0)}
    CHECKPOINTS[name](state, tmp_path / name)
    loaded = load_base(ModelConfig(call=f"{zoo}:model", checkpoint=tmp_path / name)).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused_checkpoints(folder):
    torch.save(nn.Linear(2, 3), folder / "model.pt")
    torch.save({"weight": Bomb(str(folder / "exploded"))}, folder / "bomb.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    save_file({"weight": torch.zeros(4, 2), "bias": torch.zeros(4)}, folder / "wide.safetensors")
    save_file({"weight": torch.zeros(3, 2)}, folder / "missing.safetensors")
    (folder / "text.safetensors").write_text("hello")


@pytest.mark.parametrize(
    "name", ["model.pt", "bomb.pt", "tensor.pt", "wide.safetensors", "missing.safetensors", "text.safetensors", "absent.pt"]
)
def test_other_checkpoints_are_refused_and_pickles_never_run(zoo, tmp_path, name):
    refused_checkpoints(tmp_path)
    with pytest.raises(ModelError, match=name):
        load_base(ModelConfig(call=f"{zoo}:model", checkpoint=tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def read(zoo, kind="pair", **more):
    return load_examples(SourceConfig(call=f"{zoo}:data", args={"kind": kind}, **more), "score", nn.Identity())


@pytest.mark.parametrize("kind", ["pair", "list", "dataset"])
def test_a_source_is_read_whole_in_one_fixed_shuffled_order(zoo, kind):
    firsts = [int(b.inputs[0, 0]) // 2 for b in read(zoo, kind).batches(1)]
    assert sorted(firsts) == list(range(10)) != firsts
    assert torch.equal(everything(read(zoo, kind))[1], torch.tensor(firsts) % 3)
    assert torch.equal(everything(read(zoo, kind))[0], everything(read(zoo, "pair"))[0])


def test_slices_of_one_source_are_disjoint_parts_of_it(zoo):
    parts = [everything(read(zoo, slice=part))[0] for part in ((0, 3), (3, 7), (7, 10))]
    assert torch.equal(torch.cat(parts), everything(read(zoo))[0])


def test_a_slice_must_end_within_the_data(zoo):
    with pytest.raises(DataError, match=r"data\.score\.slice: slice must end within the 10 examples"):
        read(zoo, slice=(5, 11))


@pytest.mark.parametrize("kind", ["unequal", "two datasets", "none", "empty"])
def test_a_function_that_returns_no_data(zoo, kind):
    with pytest.raises(DataError, match=r"^data\.score"):
        read(zoo, kind)


@pytest.fixture
def images(tmp_path):
    for label, shade in enumerate((0, 255)):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 16), (shade,) * 3).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_folders_of_images_are_transformed_as_the_model_asks(images):
    model = nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 12, 12), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0}
    x, y = everything(load_examples(SourceConfig(folder=images), "score", model))
    assert x.shape == (6, 3, 12, 12)
    assert torch.equal(x, (4.0 * y - 2.0).view(6, 1, 1, 1).expand_as(x))


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "flat").mkdir()
    for name in ("flat", "absent"):
        with pytest.raises(DataError, match=rf"data\.score\.folder.*{name}"):
            load_examples(SourceConfig(folder=tmp_path / name), "score", nn.Identity())


def test_an_unreadable_image_is_a_data_error(images):
    (images / "class0" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError):
        load_examples(SourceConfig(folder=images), "score", nn.Identity())
