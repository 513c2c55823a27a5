import copy
from dataclasses import replace

import pytest
import torch
from outputs import TASK, divergence, predict, top1

from lrsearch.compress import artifact
from lrsearch.compress.storage import Storage
from lrsearch.errors import ModelError, ScoreError
from lrsearch.profile.sweep import fingerprint
from lrsearch.spec.config import FinetuneConfig, ProxyConfig
from lrsearch.spec.plan import Plan
from lrsearch.study.evaluator import Evaluator
from lrsearch.task import data
from lrsearch.task.data import Examples
from lrsearch.train.batchnorm import Correction
from lrsearch.workflows.steps.verify_folder import digest

CONFIG = ProxyConfig(batch=20, finetune=FinetuneConfig(steps=6, batch=25))


@pytest.fixture
def evaluator(network, sets) -> Evaluator:
    return Evaluator(network, sets["calibration"], sets["score"], sets["train"], CONFIG, TASK)


def finetune(evaluator, fits):
    return evaluator.trained(evaluator.training(fits), CONFIG.finetune.steps, "a", corrected=True)


def rung_0(evaluator, fits, place="a"):
    return evaluator.score(fits, place).score


def test_the_baseline_is_the_dense_model(evaluator, network, sets):
    outputs = predict(network, sets["score"], 50)
    assert evaluator.baseline.divergence == 0.0
    assert evaluator.baseline.metric == pytest.approx(top1(outputs, sets["score"].labels()))


def test_the_held_out_share_is_no_part_of_what_batchnorm_sees(evaluator, sets):
    assert (len(evaluator.fit), len(evaluator.held_out)) == (45, 15)
    assert [*evaluator.fit.digests(), *evaluator.held_out.digests()] == sets["calibration"].digests()


def test_a_score_repeats_whatever_was_scored_in_between(evaluator, fits):
    first = rung_0(evaluator, fits)
    finetune(evaluator, fits)
    evaluator.score({"stem": fits["stem"]}, "b")
    assert rung_0(evaluator, fits, "c") == first
    assert rung_0(evaluator, {}).divergence == pytest.approx(0, abs=1e-6)


def test_finetuning_repeats_too(evaluator, fits):
    def once():
        evaluator.score(fits, "a")
        return finetune(evaluator, fits).score

    assert once() == once()


def test_a_finetune_that_paused_comes_to_what_it_would_have_been(evaluator, fits):
    expected = finetune(evaluator, fits)
    training = evaluator.training(fits)
    assert evaluator.trained(training, 2, "a", corrected=True).score.fidelity == 2
    state = training.state_dict()
    evaluator.score({"stem": fits["stem"]}, "b")
    again = evaluator.trained(evaluator.training(fits, state), 6, "a", corrected=True)
    assert again.score == expected.score
    assert all(torch.equal(expected.fits[n].effective(), again.fits[n].effective()) for n in fits)


@pytest.mark.parametrize(("objective", "attribute"), [("divergence", "divergence"), ("metric", "metric")])
def test_what_examples_lost_adds_up_to_the_score(evaluator, fits, objective, attribute):
    scored = evaluator.score(fits, "a")
    evaluator.score({}, "another")
    losses, score = scored.comparison.losses(objective), scored.score
    mean = float(losses.mean())
    assert len(losses) == 50
    assert (mean if objective == "divergence" else 1 - mean) == pytest.approx(getattr(score, attribute), abs=1e-6)


def test_standard_errors_are_those_of_the_examples(evaluator, fits):
    scored = evaluator.score(fits, "a")
    score = scored.score
    assert score.divergence_stderr == pytest.approx(float(scored.comparison.losses("divergence").std()) / 50**0.5)
    assert score.metric_stderr == pytest.approx((score.metric * (1 - score.metric) / 50) ** 0.5)


def test_a_metric_of_the_users_has_no_error_and_no_losses(network, sets, fits):
    mine = Evaluator(network, sets["calibration"], sets["score"], None, CONFIG, TASK.measured_by(lambda outputs, labels: 2.0))
    scored = mine.score(fits, "a")
    assert scored.score.metric_stderr is None
    assert scored.comparison.losses("metric") is None
    assert scored.comparison.losses("divergence") is not None


def test_finetuning_recovers_and_says_so(evaluator, fits):
    before = rung_0(evaluator, fits)
    after = finetune(evaluator, fits).score
    assert (before.fidelity, after.fidelity) == (0, 6)
    assert after.divergence < before.divergence


def test_the_base_model_is_not_touched(network, sets, fits):
    before = copy.deepcopy(network.state_dict())
    network.train()
    evaluator = Evaluator(network, sets["calibration"], sets["score"], sets["train"], CONFIG, TASK)
    evaluator.score(fits, "a")
    finetune(evaluator, fits)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training


@pytest.mark.parametrize("finetuned", [False, True])
def test_the_compressed_model_computes_what_was_scored(evaluator, layers, plan, fits, sets, finetuned):
    scored = finetune(evaluator, fits) if finetuned else evaluator.score(fits, "a")
    outputs = predict(evaluator.compressed(layers, plan, scored), sets["score"], 50)
    assert torch.allclose(outputs, predict(evaluator.work, sets["score"], 50), atol=1e-4)
    assert top1(outputs, sets["score"].labels()) == pytest.approx(scored.score.metric)


@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize("values", ["float16", "bfloat16", "int8"])
def test_a_score_is_that_of_the_file(network, layers, plan, fits, sets, values, finetuned, tmp_path):
    storage = Storage(layers, values)
    evaluator = Evaluator(network, sets["calibration"], sets["score"], sets["train"], CONFIG, TASK, storage=storage)
    scored = finetune(evaluator, fits) if finetuned else evaluator.score(fits, "a")
    artifact.save(evaluator.compressed(layers, plan, scored), plan, tmp_path / "model", {}, storage)
    outputs = predict(artifact.load(tmp_path / "model", network), sets["score"], 50)
    assert torch.allclose(outputs, predict(evaluator.work, sets["score"], 50), atol=1e-4)
    found = float(divergence(outputs, predict(network, sets["score"], 50)).mean())
    assert found == pytest.approx(scored.score.divergence, rel=1e-3, abs=1e-6)


def test_rounding_costs_something_and_the_baseline_has_none(network, layers, sets):
    arguments = (network, sets["calibration"], sets["score"], None, CONFIG, TASK)
    coarse = Evaluator(*arguments, storage=Storage(layers, "int8"))
    assert coarse.baseline == Evaluator(*arguments).baseline
    assert 0 < rung_0(coarse, {}).divergence < 0.1


def test_batchnorm_is_left_alone_where_the_configuration_says_so(network, sets, fits):
    config = CONFIG.model_copy(update={"batchnorm": "keep"})
    evaluator = Evaluator(network, sets["calibration"], sets["score"], None, config, TASK)
    assert not rung_0(evaluator, fits).batchnorm
    assert torch.equal(evaluator.work.norm.running_mean, network.norm.running_mean)


@pytest.mark.parametrize(("batchnorm", "corrected", "settled"), [
    ("frozen", True, True), ("frozen", False, False), ("free", True, None), ("free", False, None),
])
def test_after_training_batchnorm_is_settled_as_before_it_unless_it_moved(evaluator, fits, monkeypatch, batchnorm, corrected, settled):
    def asked(self, model, settled=None):
        asked.settled = settled
        return bool(settled)

    monkeypatch.setattr(Correction, "apply_if_better", asked)
    evaluator.config = CONFIG.model_copy(update={"finetune": CONFIG.finetune.model_copy(update={"batchnorm": batchnorm})})
    score = evaluator.trained(evaluator.training(fits), 6, "a", corrected).score
    assert asked.settled is settled
    assert score.batchnorm == bool(settled)


def test_a_model_with_outputs_that_are_not_finite_has_no_baseline(network, sets):
    with torch.no_grad():
        network.head.bias[1] = float("nan")
    with pytest.raises(ScoreError, match="^baseline: "):
        Evaluator(network, sets["calibration"], sets["score"], None, CONFIG, TASK)


def test_data_that_do_not_fit_into_memory_are_scored_and_trained_on_alike(network, sets, fits, tiny_data, monkeypatch, evaluator):
    expected = rung_0(evaluator, fits), finetune(evaluator, fits).score
    monkeypatch.setattr(data, "MEMORY_CAP", 0)
    parts = {"calibration": range(60), "score": range(60, 110), "train": range(110, 160)}
    streamed = (Examples(tiny_data, role, part) for role, part in parts.items())
    evaluator = Evaluator(network, *streamed, CONFIG, TASK)
    assert (rung_0(evaluator, fits), finetune(evaluator, fits).score) == expected


def test_a_model_that_would_compute_something_else_than_was_scored_is_not_handed_out(evaluator, layers, plan, fits, monkeypatch):
    scored = evaluator.score(fits, "a")
    monkeypatch.setattr("lrsearch.study.evaluator.compress", lambda model, *_: copy.deepcopy(model).apply(twice))
    with pytest.raises(ModelError, match=r"the compressed model must compute what its weights L \+ S compute"):
        evaluator.compressed(layers, plan, scored)


def twice(module):
    for parameter in module.parameters(recurse=False):
        parameter.data *= 2


def test_only_what_the_working_copy_holds_is_compressed(evaluator, layers, plan, fits):
    first = evaluator.score(fits, "a")
    evaluator.compressed(layers, plan, first)
    for written in (lambda: evaluator.score({}, "dense"), lambda: evaluator.training(fits), lambda: finetune(evaluator, fits),
                    lambda: evaluator.taught(evaluator.scoring, evaluator.config.finetune), lambda: evaluator.begin(fits, {})):
        held = evaluator.score(fits, "b")
        written()
        with pytest.raises(ValueError, match="must hold the candidate"):
            evaluator.compressed(layers, plan, held)


class Gain(torch.nn.Module):
    """Keeps what it multiplies with in its extra state, which is no tensor."""

    def __init__(self):
        super().__init__()
        self.gain = 3.0

    def get_extra_state(self):
        return {"gain": self.gain}

    def set_extra_state(self, state):
        self.gain = state["gain"]

    def forward(self, x):
        return self.gain * x


def test_extra_state_that_is_no_tensor_stays_the_models_own(network, layers, plan, fits, sets, tmp_path):
    base = torch.nn.Sequential()
    base.add_module("net", network)
    base.add_module("gain", Gain())
    within = {f"net.{n}": replace(fit, layer=replace(fit.layer, name=f"net.{n}")) for n, fit in fits.items()}
    specs, whole = tuple(replace(s, name=f"net.{s.name}") for s in layers), Plan({f"net.{n}": p for n, p in plan.layers.items()})
    evaluator = Evaluator(base, sets["calibration"], sets["score"], sets["train"], CONFIG, TASK, storage=Storage(specs))
    scored = finetune(evaluator, within)
    artifact.save(evaluator.compressed(specs, whole, scored), whole, tmp_path / "a", {}, evaluator.storage)
    loaded = artifact.load(tmp_path / "a", base)
    assert loaded.gain.gain == 3.0
    found = divergence(predict(loaded, sets["score"]), predict(base, sets["score"]))
    assert float(found.mean()) == pytest.approx(scored.score.divergence, rel=1e-4)
    assert fingerprint(base, {}, "data") != fingerprint(network, {}, "data")
    assert digest(base) == digest(copy.deepcopy(base))


def test_a_copy_of_the_dense_model_is_to_be_had_while_a_candidate_is_held(evaluator, network, fits):
    scored = evaluator.score(fits, "a")
    dense = evaluator.dense()
    assert digest(dense) == digest(network)
    assert dense is not evaluator.work
    assert scored.state == evaluator._state()
