import copy
import math
from itertools import pairwise

import pytest
import torch
from outputs import divergence, predict, teacher_of, top1
from torch import Tensor

from lrsearch.compress.apply import write_effective
from lrsearch.errors import ScoreError
from lrsearch.spec.recover import GradualConfig, RecoverConfig
from lrsearch.train.recover import Recovery

CONFIG = RecoverConfig(epochs=6, batch=16, learning_rate=0.02, augment="flip-crop", loss="both")
GRADUAL = CONFIG.model_copy(update={"gradual": GradualConfig()})


@pytest.fixture
def begun(network, sets, fits):
    """A recovery at its start, and the network that it trains."""

    def begun(config):
        work = copy.deepcopy(network)
        write_effective(work, fits)
        return Recovery(work, fits, teacher_of(network, sets["train"], config), config, config.learning_rate), work

    return begun


@pytest.fixture
def far(network, sets):
    """KL of a network to the dense one on some examples, all the training data by default."""

    def far(work, examples=sets["train"]):
        return float(divergence(predict(work, examples, 50), predict(network, examples, 50)).mean())

    return far


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("config", [CONFIG, GRADUAL, CONFIG.model_copy(update={"distillation": 0.3, "batchnorm": "frozen"})])
def test_killed_after_any_epoch_it_ends_as_if_it_had_not_been(begun, config):
    states = []
    whole, expected = begun(config)
    whole.run(lambda: states.append(whole.state_dict()))
    assert [s["epochs"] for s in states] == [1, 2, 3, 4, 5, 6]
    for state in (states[1], states[3]):
        torch.randn(7)
        again, work = begun(config)
        again.load_state_dict(state)
        again.run()
        assert equal(again.state_dict(), states[-1])
        assert equal(dict(work.state_dict()), dict(expected.state_dict()))


def test_its_loss_is_the_mean_of_an_epoch(begun, far, sets):
    still = {"epochs": 1, "batch": 9, "learning_rate": 1e-12, "augment": "none", "batchnorm": "frozen", "loss": "outputs"}
    recovery, work = begun(CONFIG.model_copy(update=still))
    assert math.isnan(recovery.loss)
    before = far(work, recovery.teacher.fit)
    recovery.run()
    assert recovery.steps * 9 == len(recovery.teacher.fit) == len(sets["train"]) - 5
    assert recovery.loss == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("config", [CONFIG, GRADUAL], ids=["fixed", "gradual"])
def test_it_comes_nearer_and_keeps_the_plan(begun, far, fits, config):
    recovery, work = begun(config)
    before = far(work)
    trained = recovery.run()
    assert far(work) < 0.7 * before
    for name, fit in fits.items():
        assert trained[name].mask.sum() == fit.mask.sum()
        assert not trained[name].sparse[~trained[name].mask].any()
        assert torch.equal(work.get_parameter(f"{name}.weight").flatten(), trained[name].effective().flatten())


@pytest.mark.parametrize("importance", ["scaled", "magnitude"])
def test_a_gradual_start_is_nearer_to_the_dense_model(begun, far, importance):
    config = GRADUAL.model_copy(update={"gradual": GradualConfig(start=1.0, importance=importance)})
    _, plain = begun(config)
    recovery, work = begun(config)
    recovery.student.write()
    assert far(work) < 0.8 * far(plain)


def test_labels_alone_teach_too(begun, sets):
    recovery, work = begun(CONFIG.model_copy(update={"distillation": 0.0, "learning_rate": 0.05, "epochs": 10}))
    labels = sets["train"].labels()
    before = top1(predict(work, sets["train"], 50), labels)
    recovery.run()
    assert top1(predict(work, sets["train"], 50), labels) > before


def test_the_rate_falls_to_zero_in_cycles_that_double(begun):
    recovery, _ = begun(CONFIG.model_copy(update={"epochs": 24}))
    assert recovery.steps == 2
    assert recovery.config.ends == (6, 12, 24)
    for start, end in pairwise((0, 12, 24, 48)):  # steps
        rates = [recovery.learning_rate(step) for step in range(start, end)]
        warm = max(1, min(2, (end - start) // 4))  # steps: one epoch, at most a quarter of the cycle
        assert all(a < b for a, b in pairwise(rates[:warm]))
        assert all(a > b for a, b in pairwise(rates[warm - 1 :]))
        assert rates[-1] < 0.1 * max(rates)
    assert recovery.learning_rate(26) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(("epochs", "ends"), [(1, (1,)), (2, (1, 2)), (6, (1, 3, 6)), (10, (2, 5, 10)), (30, (7, 15, 30))])
def test_there_are_three_cycles_at_most_and_one_while_s_gets_sparse(epochs, ends):
    assert CONFIG.model_copy(update={"epochs": epochs}).ends == ends
    assert GRADUAL.model_copy(update={"epochs": epochs}).ends == (epochs,)


def test_a_cycle_is_judged_by_its_end(begun):
    """What is worse at a large rate may be better at its end."""
    recovery, _ = begun(CONFIG.model_copy(update={"epochs": 8}))
    assert recovery.config.ends == (2, 4, 8)
    better, seen = iter([True, False, False, True, False, False, False, True]), []
    recovery.best.judge = lambda: next(better)
    recovery.run(lambda: seen.append((recovery.stale, recovery.peak)))
    assert seen == [(0, 0.02), (1, 0.01), (1, 0.01), *[(0, 0.01)] * 5]


def test_the_teacher_sees_what_the_student_sees(begun, module):
    name = module("seen = []\ndef f(x):\n    seen.append(len(x))\n    return x + 100\n")
    recovery, _ = begun(CONFIG.model_copy(update={"augment": f"{name}:f", "epochs": 1}))
    taught = []
    recovery.teacher.dense.register_forward_pre_hook(lambda _, inputs: taught.append(float(inputs[0].mean())))
    recovery.run()
    assert len(taught) == 2
    assert min(taught) > 90


def test_the_global_generator_is_left_alone(begun):
    recovery, _ = begun(CONFIG)
    before = torch.get_rng_state()
    recovery.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_says_where(begun):
    recovery, _ = begun(CONFIG.model_copy(update={"learning_rate": 1e30, "warmup": 0.0}))
    with pytest.raises(ScoreError, match=r"^epoch \d, step \d: the finetune loss must be finite.*Lower the learning_rate"):
        recovery.run()


@pytest.mark.parametrize("rate", [3.0, 300.0])
def test_it_hands_over_what_it_was_given_where_nothing_is_better(begun, fits, rate):
    recovery, work = begun(CONFIG.model_copy(update={"learning_rate": rate, "warmup": 0.0, "patience": 2, "epochs": 9, "optimizer": "sgd"}))
    before = recovery.best.loss
    found = recovery.run()
    assert recovery.best.loss == before
    assert recovery.epochs == 4, "a cycle of two epochs in vain, and one with half of the rate"
    assert recovery.peak == rate / 4
    for name, fit in fits.items():
        torch.testing.assert_close(found[name].effective(), fit.effective())
        torch.testing.assert_close(work.get_parameter(f"{name}.weight").flatten(), fit.effective().flatten())


def test_a_state_with_more_values_than_its_plan_is_never_the_best(begun):
    recovery, _ = begun(GRADUAL)
    judged = []
    recovery.best.judge = lambda: bool(judged.append(recovery.epochs)) or True
    recovery.run()
    assert judged == [4, 5, 6]
