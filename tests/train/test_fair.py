"""What was trained on does not decide about BatchNorm or a polish."""

import pytest
import torch
from outputs import TASK, predict

from lrsearch.errors import DataError
from lrsearch.spec.config import FinetuneConfig, ProxyConfig
from lrsearch.study.evaluator import Evaluator
from lrsearch.task.data import Examples
from lrsearch.task.forward import joined
from lrsearch.train.batchnorm import Correction
from lrsearch.workflows.polish import polish_folder

CONFIG = ProxyConfig(batch=20, finetune=FinetuneConfig(steps=6, batch=25, learning_rate=0.001))


def some(tiny_data, *parts):
    """Training data of the examples in ``parts``; the held-out examples are 45 to 59."""
    indices = [i for part in parts for i in part]
    return Examples((tiny_data[0][indices], tiny_data[1][indices]), "train")


@pytest.fixture
def deciding(monkeypatch):
    """The held-out examples of each decision about a model."""
    seen, apply = [], Correction.apply_if_better

    def spied(self, model, settled=None):
        seen.append(self.held_out.digests())
        return apply(self, model, settled)

    monkeypatch.setattr(Correction, "apply_if_better", spied)
    return seen


def trained(evaluator, fits, corrected):
    return evaluator.trained(evaluator.training(fits), 6, "a", corrected).score


def test_after_a_finetune_held_out_examples_that_it_used_have_no_say(network, sets, fits, tiny_data, deciding):
    notes = []
    train = some(tiny_data, range(50, 60), range(110, 150))
    evaluator = Evaluator(network, sets["calibration"], sets["score"], train, CONFIG, TASK, note=notes.append)
    trained(evaluator, fits, True)
    untrained, after = deciding
    assert untrained == sets["calibration"].digests()[45:]
    assert after == sets["calibration"].digests()[45:50]
    assert notes == []


@pytest.mark.parametrize("settled", [True, False])
def test_where_all_were_trained_on_what_was_settled_stays_and_it_is_told_once(network, sets, fits, tiny_data, deciding, settled):
    notes = []
    evaluator = Evaluator(network, sets["calibration"], sets["score"], some(tiny_data, range(60)), CONFIG, TASK, note=notes.append)
    training = evaluator.training(fits)
    before = evaluator.work.norm.running_mean.clone()
    assert [evaluator.trained(training, until, "a", settled).score.batchnorm for until in (3, 6)] == [settled] * 2
    assert torch.equal(evaluator.work.norm.running_mean, before)
    assert len(deciding) == 1
    assert len(notes) == 1
    assert notes[0].startswith("all held-out calibration examples were trained on")


def test_a_correction_without_examples_compares_with_the_dense_model_on_the_others(network, sets, tiny_data):
    correction = Correction(network, sets["calibration"].part(range(45)), sets["calibration"].part(range(45, 60)), 20)
    assert correction.without(sets["train"]) is correction
    fewer = correction.without(some(tiny_data, range(45, 55)))
    assert fewer.held_out.digests() == sets["calibration"].digests()[55:]
    torch.testing.assert_close(joined(fewer.reference.all())["values"][:, 0], predict(network, fewer.held_out, 20))
    assert fewer.divergence(network) == pytest.approx(0, abs=1e-6)
    assert len(correction.held_out) == 15
    assert correction.without(some(tiny_data, range(60))) is None


def test_a_polish_is_compared_on_examples_that_the_finetune_did_not_use(folder, network, sets, tiny_data, tmp_path):
    used = some(tiny_data, range(45, 50), range(99, 120))
    report = polish_folder(folder, network, sets["calibration"], tmp_path / "out", trained_on=used)
    assert (report.examples, report.held_out) == (45, 10)
    with pytest.raises(DataError, match=r"^data\.calibration: held-out examples must not have been trained on; got all 15"):
        polish_folder(folder, network, sets["calibration"], tmp_path / "no", trained_on=some(tiny_data, range(60)))
    assert not (tmp_path / "no").exists()


def test_a_correction_over_smaller_batches_is_against_the_dense_model_over_as_small_ones(network, sets, fits):
    """As statistics of a BatchNorm depend on the size of the batches; both as if the batches had been small from the beginning."""
    scores = []
    for batch, shrunk in ((5, 5), (20, 5)):
        config = CONFIG.model_copy(update={"batch": batch})
        evaluator = Evaluator(network, sets["calibration"], sets["score"], None, config, TASK)
        evaluator.batch.size = shrunk
        scores.append((evaluator.score(fits, "a").score, evaluator.work.norm.running_var.clone()))
    assert scores[0][0].divergence == pytest.approx(scores[1][0].divergence, rel=1e-4)
    assert scores[0][0].batchnorm
    torch.testing.assert_close(scores[0][1], scores[1][1])
