import copy
import io
from itertools import pairwise

import pytest
import torch
from outputs import reference_of, teacher_of
from torch import Tensor

from lrsearch.compress.apply import write_effective
from lrsearch.errors import ScoreError
from lrsearch.spec.config import FinetuneConfig, ProxyConfig
from lrsearch.study.parts import training_part
from lrsearch.task.data import Examples
from lrsearch.train.finetune import Training, batch_order
from lrsearch.train.teacher import split_training

CONFIG = FinetuneConfig(steps=20, batch=25, learning_rate=0.02, loss="both")


@pytest.fixture
def run(network, sets, fits):
    """Finetunes the decomposed network; returns the trained factors and the KL before and after."""
    reference, dense = reference_of(network, sets["train"]), copy.deepcopy(network)
    state = {k: v.clone() for k, v in network.state_dict().items()}

    def divergence_now():
        return float(reference.compare(network).divergences.mean())

    def finetuned(config):
        network.load_state_dict(state)
        write_effective(network, fits)
        before = divergence_now()
        trained = Training(network, fits, teacher_of(dense, sets["train"], config), config, config.learning_rate).run(config.steps)
        return trained, before, divergence_now()

    return finetuned


@pytest.mark.parametrize("batchnorm", ["free", "frozen"])
def test_the_divergence_on_the_training_data_falls(run, batchnorm):
    _, before, after = run(CONFIG.model_copy(update={"batchnorm": batchnorm}))
    assert after < 0.7 * before


@pytest.mark.parametrize("loss", ["features", "both"])
def test_a_finetune_in_bfloat16_is_of_use_too(run, loss):
    _, before, after = run(CONFIG.model_copy(update={"autocast": "bfloat16", "loss": loss, "steps": 40}))
    assert after < 0.9 * before


def test_masks_are_fixed_and_everything_kept_is_trained(run, fits):
    trained, _, _ = run(CONFIG)
    for name, fit in fits.items():
        assert torch.equal(trained[name].mask, fit.mask)
        assert not trained[name].sparse[~fit.mask].any()
        assert not torch.equal(trained[name].effective(), fit.effective())


def test_the_given_factors_are_left_alone(run, fits):
    before = {n: [t.clone() for t in (*f.factors, f.sparse, f.mask)] for n, f in fits.items()}
    run(CONFIG)
    assert all(torch.equal(a, b) for n, f in fits.items() for a, b in zip(before[n], (*f.factors, f.sparse, f.mask), strict=True))


def test_the_model_ends_with_the_trained_weights_in_eval_mode(run, network):
    trained, _, _ = run(CONFIG)
    for name, fit in trained.items():
        weight = network.get_parameter(f"{name}.weight")
        assert torch.equal(weight, fit.effective().view_as(weight))
    assert not any(m.training for m in network.modules())


@pytest.mark.parametrize(("batchnorm", "moves"), [("free", True), ("frozen", False)])
def test_only_free_batchnorm_statistics_move(run, network, batchnorm, moves):
    before = network.norm.running_mean.clone()
    run(CONFIG.model_copy(update={"batchnorm": batchnorm}))
    assert torch.equal(network.norm.running_mean, before) != moves


def test_the_seed_decides(run):
    def weights(seed):
        return run(CONFIG.model_copy(update={"seed": seed}))[0]["head"].sparse

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_loss_that_is_not_finite_is_a_score_error_with_its_step(run):
    with pytest.raises(ScoreError, match=r"^finetune step [1-9]"):
        run(CONFIG.model_copy(update={"learning_rate": 1e30}))


@pytest.fixture
def begun(network, sets, fits):
    """A training at its start, whatever was done to the network."""
    dense, state = copy.deepcopy(network), copy.deepcopy(network.state_dict())

    def begun(config):
        network.load_state_dict(state)
        write_effective(network, fits)
        return Training(network, fits, teacher_of(dense, sets["train"], config), config, config.learning_rate)

    return begun


RUNGS = CONFIG.model_copy(update={"rungs": 3})


def equal(a, b):
    """Whether two states or models are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


RESELECT = RUNGS.model_copy(update={"masks": "reselect", "reselect_every": 3})


@pytest.mark.parametrize("config", [RUNGS, RESELECT], ids=["fixed", "reselect"])
@pytest.mark.parametrize("stop", [5, 7, 10])
def test_resuming_is_as_never_having_stopped(begun, network, stop, config):
    whole = begun(config)
    whole.run(20)
    expected = copy.deepcopy(network.state_dict())
    first = begun(config)
    first.run(stop)
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    second = begun(config)
    stored.seek(0)
    second.load_state_dict(torch.load(stored, weights_only=True))
    assert second.steps == stop
    second.run(20)
    assert equal(second.state_dict(), whole.state_dict())
    assert equal(dict(network.state_dict()), dict(expected))


def test_reselected_masks_move_and_keep_as_many_values(begun, fits):
    training = begun(RESELECT)
    moved = {n for n, f in training.run(20).items() if not torch.equal(f.mask, fits[n].mask)}
    assert "grouped" in moved
    assert "pointwise" not in moved
    for name, fit in training.run(20).items():
        assert fit.mask.sum() == fits[name].mask.sum()
        assert not fit.sparse[~fit.mask].any()


def test_where_masks_move_the_divergence_falls_too(run):
    _, before, after = run(RESELECT)
    assert after < 0.7 * before


def test_what_is_done_to_the_model_between_two_rungs_does_not_matter(begun, network):
    whole = begun(RUNGS)
    whole.run(20)
    paused = begun(RUNGS)
    trained = paused.run(10)
    kept = {n: f.sparse.clone() for n, f in trained.items()}
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.zero_()
    paused.run(20)
    assert equal(paused.state_dict(), whole.state_dict())
    assert equal({n: f.sparse for n, f in trained.items()}, kept)


def test_a_state_is_not_changed_by_going_on(begun):
    training = begun(RUNGS)
    training.run(5)
    state = training.state_dict()
    before = copy.deepcopy(state)
    training.run(10)
    assert equal(state, before)


def test_the_rungs_double_and_the_learning_rate_falls_to_zero_in_each(begun):
    training = begun(RUNGS)
    assert RUNGS.ends == (5, 10, 20)
    rates = [training.learning_rate(step) for step in range(20)]
    assert rates[0] == rates[5] == 0.02 / 1.25  # a quarter of five steps is 1.25: the first of them is below the peak
    assert rates[10] == 0.02 / 2.5
    assert all(a > b for i, (a, b) in enumerate(pairwise(rates), 1) if i not in (1, 5, 6, 10, 11, 12))
    assert rates[19] < 0.001


def test_batches_go_through_whole_epochs():
    order = batch_order(Examples(torch.zeros(6, 1), "train"), FinetuneConfig(steps=5, batch=4)).flatten().tolist()
    assert len(order) == 20
    assert all(sorted(order[i : i + 6]) == list(range(6)) for i in (0, 6, 12))
    assert order[:6] != order[6:12]


def test_only_what_the_steps_read_is_kept_of_the_training_data(sets):
    def part(steps):
        return training_part(sets["train"], ProxyConfig(finetune=FinetuneConfig(steps=steps, batch=8)))

    assert [len(part(steps)) for steps in (2, 5, 7, 40)] == [19, 46, 50, 50]  # a tenth judges
    assert {*part(2).digests()} < {*sets["train"].digests()}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("rate", [1.0, 30.0])
def test_it_never_ends_worse_than_it_began(begun, network, sets, fits, rate, optimizer):
    config = RUNGS.model_copy(update={"learning_rate": rate, "optimizer": optimizer, "clip": 1.0})
    training = begun(config)
    reference = training.teacher.judge
    before = float(reference.compare(network).divergences.mean())
    for end in config.ends:
        training.run(end)
        assert float(reference.compare(network).divergences.mean()) <= before * (1 + 1e-5)
    assert training.peak < rate, "a rung that brought nothing halves it"


@pytest.mark.parametrize("loss", ["features", "outputs", "both"])
def test_each_loss_brings_the_model_nearer(run, loss):
    _, before, after = run(CONFIG.model_copy(update={"loss": loss, "learning_rate": 0.1}))
    assert after < 0.8 * before


def test_auto_begins_with_features_and_may_turn_to_both(network, sets):
    teacher = teacher_of(network, sets["train"], CONFIG.model_copy(update={"loss": "auto"}))
    batch = teacher.batch(torch.arange(8), (0, 0))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)

    def lost(loss):
        own = teacher.lowering(loss)
        with torch.no_grad(), own.watching(other) as watched:
            return float(own.loss(batch, watched)(other(batch.inputs)))

    assert teacher.losses == ("features", "both")
    assert teacher.lowered == teacher.lowering("auto").lowered == "features"
    assert lost("both") == pytest.approx(lost("features") + lost("outputs"))
    assert min(lost("features"), lost("outputs")) > 0
    assert teacher_of(network, sets["train"], CONFIG).losses == ("both",)


def test_its_best_state_may_lie_in_the_middle(begun, network):
    """Judged at every end; one that is worse is forgotten, and the next rung begins with the best."""
    training = begun(RUNGS)
    training.run(5)
    best = {n: p.clone() for n, p in training.student.parameters.items()}
    judged = []
    training.best.judge = lambda: bool(judged.append(training.steps))
    training.run(10)
    assert judged == [10]
    assert all(torch.equal(p, best[n]) for n, p in training.student.parameters.items())
    assert training.peak == CONFIG.learning_rate / 2


def test_what_judges_is_not_trained_on(sets):
    fit, held_out = split_training(sets["train"], FinetuneConfig(held_out=0.2))
    assert (len(fit), len(held_out)) == (40, 10)
    assert {*fit.digests(), *held_out.digests()} == set(sets["train"].digests())
    one = sets["train"].part([3])
    assert split_training(one, CONFIG) == (one, one)


def test_a_plan_of_no_layers_is_left_as_it_is(network, sets):
    before = copy.deepcopy(network.state_dict())
    training = Training(network, {}, teacher_of(network, sets["train"], CONFIG), CONFIG, 1.0)
    assert training.run(20) == {}
    assert training.steps == 20
    assert equal(dict(network.state_dict()), dict(before))


def test_augmented_batches_depend_on_seed_and_step_alone(begun):
    config = CONFIG.model_copy(update={"augment": "flip-crop"})
    units, teacher = torch.arange(10), begun(config).teacher
    first = teacher.batch(units, (0, 1)).inputs
    state = torch.get_rng_state()
    torch.randn(5)
    assert torch.equal(teacher.batch(units, (0, 1)).inputs, first)
    assert not torch.equal(teacher.batch(units, (0, 2)).inputs, first)
    torch.set_rng_state(state)
