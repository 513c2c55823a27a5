"""A finetune begins from a polish, where held-out calibration data find that better."""

import copy

import pytest
import torch
from outputs import TASK

from lrsearch.compress.storage import Storage
from lrsearch.errors import ModelError
from lrsearch.profile.importance import importances
from lrsearch.spec.config import FinetuneConfig, ProxyConfig
from lrsearch.study import polisher
from lrsearch.study.evaluator import Evaluator
from lrsearch.train import polish as polish_module
from lrsearch.train.polish import Polished, polish


@pytest.fixture
def evaluator_of(network, sets):
    """Of these settings of the finetune, and what it noted."""
    def evaluator(proxy=None, **finetune) -> tuple[Evaluator, list[str]]:
        notes: list[str] = []
        config = ProxyConfig(batch=20, finetune=FinetuneConfig(**{"steps": 6, "batch": 25, **finetune}), **(proxy or {}))
        return Evaluator(network, sets["calibration"], sets["score"], sets["train"], config, TASK, note=notes.append), notes

    return evaluator


@pytest.fixture
def polishes(monkeypatch):
    """The plans that were polished."""
    plans = []
    monkeypatch.setattr(polisher, "polish", lambda *args: plans.append(args[2]) or polish(*args))
    return plans


@pytest.fixture
def spoilt(monkeypatch):
    """Polishes do harm."""
    def harmful(*args):
        plans.append(args[2])
        found = polish(*args)
        return Polished(found.fits, {name: 9 + tensor for name, tensor in found.tensors.items()})

    plans = []
    monkeypatch.setattr(polisher, "polish", harmful)
    return plans


def held_out(evaluator):
    return evaluator.correction.divergence(evaluator.work)


def start_of(evaluator, fits):
    """The held-out calibration divergence of what a finetune begins with."""
    training = evaluator.training(fits)
    training.best.write()
    return held_out(evaluator)


def untrained(evaluator, fits):
    evaluator.score(fits, "a")
    return held_out(evaluator)


def test_a_finetune_begins_from_the_polish_that_is_better(evaluator_of, fits, polishes):
    evaluator, notes = evaluator_of()
    before = untrained(evaluator, fits)
    assert start_of(evaluator, fits) < 0.5 * before
    assert evaluator.recipe.polish
    assert [set(plan.layers) for plan in polishes] == [set(fits), set(fits)]  # the range test's, and the finetune's
    assert notes == []


def test_the_range_test_says_that_it_began_from_a_polish(evaluator_of, fits):
    assert " polished, " in str(evaluator_of()[0].range_test(fits))
    assert " before, " in str(evaluator_of(polish=False)[0].range_test(fits))


def test_where_the_range_test_finds_it_no_better_no_plan_is_polished_again(evaluator_of, fits, spoilt):
    evaluator, _ = evaluator_of()
    before = untrained(evaluator, fits)
    for _ in range(2):
        assert start_of(evaluator, fits) == pytest.approx(before)
    assert not evaluator.recipe.polish
    assert len(spoilt) == 1


def test_with_a_given_rate_each_plan_is_polished_and_judged(evaluator_of, fits, spoilt):
    evaluator, _ = evaluator_of(learning_rate=1e-3)
    before = untrained(evaluator, fits)
    for _ in range(2):
        assert start_of(evaluator, fits) == pytest.approx(before)
    assert len(spoilt) == 2


@pytest.mark.parametrize(("proxy", "finetune"), [({}, {"polish": False}), ({"batchnorm": "keep"}, {})])
def test_it_may_be_left_out_and_batchnorm_that_is_kept_is_not_shifted(evaluator_of, fits, polishes, proxy, finetune):
    evaluator, _ = evaluator_of(proxy, learning_rate=1e-3, **finetune)
    before = untrained(evaluator, fits)
    assert start_of(evaluator, fits) == pytest.approx(before)
    assert polishes == []


def test_no_plan_no_polish(evaluator_of, polishes):
    evaluator_of(learning_rate=1e-3)[0].training({})
    assert polishes == []


@pytest.mark.parametrize(
    ("error", "kind"), [
        (ModelError("must not be tied", value="a weight", place="stem", remedy="None."), ""),
        (torch.OutOfMemoryError("out of memory"), ""), (ZeroDivisionError("by zero"), "ZeroDivisionError: "),
    ],
)
def test_a_polish_that_cannot_be_is_told_once_and_the_finetune_goes_on(evaluator_of, fits, monkeypatch, error, kind):
    def refuse(*_):
        raise error

    monkeypatch.setattr(polisher, "polish", refuse)
    evaluator, notes = evaluator_of(learning_rate=1e-3)
    for _ in range(2):
        scored = evaluator.trained(evaluator.training(fits), 6, "a", corrected=True)
    assert scored.score.fidelity == 6
    (note,) = notes
    assert note == f"finetunes begin without a polish: {kind}{error}"


def test_what_layers_matter_is_found_once_for_all_plans(evaluator_of, fits, monkeypatch):
    def counted(dense, layers, *args):
        asked.append([spec.name for spec in layers])
        return importances(dense, layers, *args)

    asked = []
    monkeypatch.setattr(polish_module, "importances", counted)
    evaluator, _ = evaluator_of(learning_rate=1e-3)
    first, *others = fits
    evaluator.training({first: fits[first]})
    evaluator.training(fits)
    evaluator.training(fits)
    assert asked == [[first], others, []]


def test_rounded_is_compared_with_rounded(evaluator_of, layers, fits, monkeypatch):
    """As a polish may be better only before values are stored in int8."""
    def rounding_changes(work):
        again = copy.deepcopy(work)
        evaluator.storage.round_dense(again, besides=[first])
        return any(not torch.equal(a, b) for a, b in zip(work.state_dict().values(), again.state_dict().values(), strict=True))

    evaluator, _ = evaluator_of(learning_rate=1e-3)
    evaluator.storage, changes = Storage(tuple(layers), "int8"), []
    first = next(iter(fits))
    divergence = evaluator.correction.divergence
    monkeypatch.setattr(evaluator.correction, "divergence", lambda work: changes.append(rounding_changes(work)) or divergence(work))
    evaluator.training({first: fits[first]})
    assert changes[-2:] == [False, False]
    evaluator.begin({}, {})
    assert rounding_changes(evaluator.work)


def test_a_finetune_that_paused_goes_on_without_another_polish(evaluator_of, fits, polishes):
    evaluator, _ = evaluator_of(learning_rate=1e-3)
    expected = evaluator.trained(evaluator.training(fits), 6, "a", corrected=True)
    training = evaluator.training(fits)
    evaluator.trained(training, 2, "a", corrected=True)
    state = training.state_dict()
    assert len(polishes) == 2
    again = evaluator.trained(evaluator.training(fits, state), 6, "a", corrected=True)
    assert again.score == expected.score
    assert len(polishes) == 2
