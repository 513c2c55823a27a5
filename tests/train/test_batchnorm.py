import copy

import pytest
import torch
from outputs import divergence, everything, predict
from torch import nn

from lrsearch.task.data import Examples
from lrsearch.train.batchnorm import MOST, Correction, norms, running, shifted, statistics


@pytest.fixture
def correction(network, sets):
    return Correction(network, sets["calibration"], sets["score"], 60)


@pytest.fixture
def candidate(network):
    """The network with a stem whose outputs are half as wide, which BatchNorm can make up for."""
    moved = copy.deepcopy(network)
    with torch.no_grad():
        moved.stem.weight.mul_(0.5)
    return moved


def seen_by(network, x):
    """Mean and variance of each channel that the BatchNorm layer gets."""
    channels = network.stem(x).transpose(0, 1).flatten(1)
    return channels.mean(1), channels.var(1)


def test_statistics_are_those_of_the_data_averaged_over_batches(network, tiny_data):
    x = tiny_data[0][:40]
    (mean, var), = statistics(network, iter([x[:20], x[20:]]))
    expected = [torch.stack(both).mean(0) for both in zip(seen_by(network, x[:20]), seen_by(network, x[20:]), strict=True)]
    torch.testing.assert_close(mean, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, expected[1], rtol=1e-4, atol=1e-5)


def test_statistics_leave_the_model_as_it_was(network, tiny_data, left_alone):
    network.train()
    network.norm.eval()
    momentum = network.norm.momentum
    with left_alone(network):
        statistics(network, [tiny_data[0][:20]])
    assert network.norm.momentum == momentum


def test_a_failing_batch_leaves_the_model_as_it_was(network, left_alone):
    with left_alone(network), pytest.raises(RuntimeError):
        statistics(network, [torch.randn(2, 5, 12, 12)])
    assert network.norm.momentum == 0.1


def test_running_statistics_are_copies(network):
    (mean, var), = running(network)
    assert torch.equal(mean, network.norm.running_mean)
    assert torch.equal(var, network.norm.running_var)
    mean.add_(1)
    assert not torch.equal(mean, network.norm.running_mean)


def test_norms_are_those_with_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(3), nn.BatchNorm2d(4))
    assert norms(model) == [model[0], model[3]]


def test_statistics_move_as_the_candidates_differ_from_the_dense_models():
    own, dense, seen = ((torch.tensor([m]), torch.tensor([v])) for m, v in ((1.0, 8.0), (2.0, 4.0), (5.0, 2.0)))
    mean, var = shifted(own, dense, seen)
    assert (float(mean), float(var)) == (1.0 + 5.0 - 2.0, 8.0 * 2.0 / 4.0)


@pytest.mark.parametrize(("seen", "ratio"), [(1e9, MOST), (0.0, 1 / MOST)])
def test_a_variance_moves_tenfold_at_most(seen, ratio):
    own, zero = torch.tensor([3.0]), torch.zeros(1)
    assert float(shifted((zero, own), (zero, torch.ones(1)), (zero, torch.tensor([seen])))[1]) == pytest.approx(3.0 * ratio)
    assert shifted((zero, own), (zero, zero), (zero, zero))[1].isfinite().all()


def test_kept_where_the_held_out_divergence_falls(correction, candidate, network):
    before = correction.divergence(candidate)
    assert correction.apply_if_better(candidate)
    assert correction.divergence(candidate) < before / 100
    torch.testing.assert_close(candidate.norm.running_mean, 0.5 * network.norm.running_mean, rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(candidate.norm.running_var, 0.25 * network.norm.running_var, rtol=1e-3, atol=1e-4)


def test_undone_to_the_bit_where_it_does_not_fall(correction, candidate, left_alone):
    """A candidate whose statistics are right already, to more digits than a few examples give."""
    candidate.norm.running_mean.mul_(0.5)
    candidate.norm.running_var.mul_(0.25)
    with left_alone(candidate):
        assert not correction.apply_if_better(candidate)
    candidate.norm.running_mean.add_(0.1)
    assert correction.apply_if_better(candidate)


def test_the_dense_model_is_left_alone_and_has_no_divergence(network, sets, left_alone):
    with left_alone(network):
        correction = Correction(network, sets["calibration"], sets["score"], 60)
        assert correction.divergence(network) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("gained", "settled", "stays"), [
    ((0.1, 0.1), None, True), ((-0.1, -0.1), None, False),
    ((-0.3, 0.1), True, True), ((-0.3, 0.1), False, False), ((-0.3, 0.1), None, False),
    ((0.3, -0.1), True, True), ((0.3, -0.1), False, False), ((0.3, -0.1), None, True),
    ((-0.3, -0.1), True, False), ((0.3, 0.1), False, True),
])
def test_what_was_settled_before_is_overruled_beyond_noise_alone(correction, candidate, monkeypatch, gained, settled, stays):
    one = torch.tensor(gained).repeat(3)  # standard errors of the mean are 0.09 where the two differ by 0.4, 0.04 by 0.2
    answers = iter([one, torch.zeros(6)])
    monkeypatch.setattr(Correction, "_divergences", lambda self, model: next(answers))
    old = running(candidate)
    assert correction.apply_if_better(candidate, settled) == stays
    assert any(not torch.equal(a, b) for pair in zip(old, running(candidate), strict=True) for a, b in zip(*pair, strict=True)) == stays


@pytest.mark.parametrize("settled", [True, False])
def test_one_held_out_example_has_no_noise(candidate, network, sets, settled):
    correction = Correction(network, sets["calibration"], sets["score"].part(range(1)), 60)
    assert correction.apply_if_better(candidate, settled)


def test_the_divergence_is_measured_on_the_held_out_examples(correction, candidate, network, sets):
    expected = divergence(predict(candidate, sets["score"], 50), predict(network, sets["score"], 50)).mean()
    assert correction.divergence(candidate) == pytest.approx(float(expected), rel=1e-5)


def test_nothing_to_do_without_batchnorm(sets):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval()
    assert not Correction(model, sets["calibration"], sets["score"], 60).apply_if_better(model)


@pytest.mark.parametrize("examples", [1, 4, 5])
def test_a_last_batch_of_one_example_is_no_obstacle(examples):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    data = Examples((torch.randn(examples, 3), torch.zeros(examples)), "calibration")
    Correction(model, data, data, 2).apply_if_better(copy.deepcopy(model))
    x, whole = everything(data)[0], examples // 2 * 2
    (mean, var), = statistics(model, x.split(2))
    expected = statistics(model, x[:whole].split(2))[0] if whole else (torch.zeros(4), torch.ones(4))
    assert torch.equal(mean, expected[0])
    assert torch.equal(var, expected[1])


def test_a_model_without_batchnorm_is_not_run_for_its_statistics():
    def batches():
        raise AssertionError
        yield

    assert statistics(nn.Sequential(nn.Linear(2, 2)), batches()) == []
