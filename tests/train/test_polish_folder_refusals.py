"""When a polish writes nothing."""


import pytest
import torch
from torch import nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress
from lrsearch.compress.inventory import inventory
from lrsearch.compress.storage import Storage
from lrsearch.errors import ArtifactError, DataError, ModelError
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.task.data import Examples
from lrsearch.workflows.steps import polish_folder as polish
from lrsearch.workflows.steps.polish_folder import polish_folder


def test_nothing_is_written_where_it_is_not_better(folder, network, sets, tmp_path, monkeypatch):
    def worse(*args, original=polish.polish):
        found = original(*args)
        found.tensors["head.bias"] = torch.tensor([100.0, 0.0, 0.0, 0.0])
        return found

    monkeypatch.setattr(polish, "polish", worse)
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out")
    assert report.after > report.before
    assert report.folder is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0012"]


class PixelsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(x.flatten(2).permute(2, 0, 1)).mean(0)


def test_a_model_that_mixes_examples_is_refused_and_nothing_written(sets, tmp_path):
    base, plan = PixelsFirst().eval(), Plan({"head": LayerPlan("svd", (1,), 0.0)})
    layers = inventory(base, sets["calibration"].sample(2)).layers
    artifact.save(compress(base, layers, plan), plan, tmp_path / "a", {})
    with pytest.raises(ModelError, match="examples of a batch apart"):
        polish_folder(tmp_path / "a", base, sets["calibration"], tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_missing_or_another_models_is_an_artifact_error(folder, network, sets, tmp_path):
    with pytest.raises(ArtifactError, match=r"0013/plan\.json"):
        polish_folder(folder.with_name("0013"), network, sets["calibration"], tmp_path / "out")
    with pytest.raises(ArtifactError, match="layer of the base model"):
        polish_folder(folder, nn.Sequential(nn.Linear(3, 2)), sets["calibration"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_of_another_shape_are_a_data_error(folder, network, tmp_path):
    with pytest.raises(DataError, match=r"^data\.calibration"):
        polish_folder(folder, network, Examples((torch.randn(9, 1, 12, 12), torch.zeros(9).long()), "calibration"), tmp_path / "out")


def test_a_tied_weight_is_refused_and_nothing_written(sets, tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).mean((2, 3)))

    torch.manual_seed(0)
    base, plan = Twice().eval(), Plan({"a": LayerPlan(density=0.3)})
    layers = inventory(base, sets["calibration"].sample(2)).layers
    artifact.save(compress(base, layers, plan), plan, tmp_path / "a", {}, Storage(layers))
    with pytest.raises(ModelError, match="a tied weight"):
        polish_folder(tmp_path / "a", base, sets["calibration"], tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
