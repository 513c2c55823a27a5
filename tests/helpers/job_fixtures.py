"""A job small enough to search in a second; profiles of equal jobs are shared between tests. The search space of a real study."""

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs import FINETUNED
from torch import nn

import lrsearch
from lrsearch.search.decoder import Decoder
from lrsearch.spec.cost import Budget
from lrsearch.spec.space import Range, Rule, Space
from lrsearch.study import space_file
from lrsearch.study.evaluator import Evaluator
from lrsearch.study.study_folder import StudyFolder

SPACE = Space(rules=(
    Rule(
        density=Range(min=0.1, max=0.8, steps=5), rank_ratio=Range(min=0.2, max=0.5, steps=2),
        combined_rank_ratio=Range(min=0.2, max=0.5, steps=2), combined_density=Range(min=0.1, max=0.3, steps=2),
    ),
))


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """A folder with the ``space.json`` of ``studies/digits.yaml``: 54 layers, 1,487 choices, damage from 0 and 2e-17 to 1.3 nats."""
    folder = tmp_path_factory.mktemp("digits")
    packed = Path(__file__).parent / "data" / "digits_space.json.gz"
    (folder / "space.json").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


@pytest.fixture
def digits(digits_folder) -> Decoder:
    """The decoder of ``studies/digits.yaml``."""
    return space_file.load(StudyFolder(digits_folder))


@pytest.fixture(scope="session")
def finished() -> dict[str, Path]:
    """Name of a job → the folder of its study, once that is finished."""
    return {}


@pytest.fixture(autouse=True)
def cache(monkeypatch, session_cache):
    monkeypatch.setenv("LRSEARCH_CACHE", str(session_cache))


@pytest.fixture
def sure_network(tiny_model, tiny_data) -> nn.Module:
    """The tiny model with its head fitted to the labels by least squares: right and sure."""
    seen = []
    handle = tiny_model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny_model(tiny_data[0])
        features = torch.cat([seen[0], torch.ones(160, 1)], 1)
        solution = torch.linalg.lstsq(features, 8.0 * nn.functional.one_hot(tiny_data[1]).float()).solution.T
        tiny_model.head.weight.copy_(solution[:, :-1])
        tiny_model.head.bias.copy_(solution[:, -1])
    handle.remove()
    return tiny_model


@pytest.fixture
def job(sure_network, tiny_data, tmp_path) -> dict:
    """Arguments of ``lrsearch.search``."""
    x, y = tiny_data
    return {
        "model": sure_network, "calibration": (x[:50], y[:50]), "score": (x[50:110], y[50:110]), "train": (x[110:], y[110:]),
        "space": SPACE, "budget": Budget(params=0.6, weight_bytes=0.65), "out": tmp_path / "run",
        "search": {"trials": 3, "control_points": 2, "lowest": 0.2},
    }


@pytest.fixture
def calls(monkeypatch):
    """The places of the evaluations made; ``calls.fail`` may hold one to answer each with an error."""

    class Calls(list):
        fail = staticmethod(lambda count: None)

    made, score = Calls(), Evaluator.score

    def counted(self, fits, place):
        made.append(place)
        made.fail(len(made))
        return score(self, fits, place)

    monkeypatch.setattr(Evaluator, "score", counted)
    return made


@pytest.fixture
def told(monkeypatch) -> dict[int, set[bool]]:
    """What the finetunes of each plan were told of its BatchNorm."""
    made, trained = {}, Evaluator.trained

    def spied(self, training, until, place, corrected):
        made.setdefault(int(re.search(r"\d+", place)[0]), set()).add(corrected)
        return trained(self, training, until, place, corrected)

    monkeypatch.setattr(Evaluator, "trained", spied)
    return made


@pytest.fixture
def finish(tmp_path_factory, finished) -> Callable[[str, dict], lrsearch.Result]:
    """The finished study of a job: run once for all jobs of one name, then a copy of its folder for every test."""

    def finish(name: str, job: dict) -> lrsearch.Result:
        if name not in finished:
            folder = tmp_path_factory.mktemp("finished") / "run"
            lrsearch.search(**{**job, "out": folder})
            finished[name] = folder
        shutil.copytree(finished[name], job["out"])
        return lrsearch.search(**job)

    return finish


@pytest.fixture
def result(job, finish):
    """The finished study of ``job``."""
    return finish("fitted", job)


@pytest.fixture
def finetuned_result(job, finish):
    """The finished study of ``job`` with two training rungs."""
    return finish("finetuned", {**job, **FINETUNED})
