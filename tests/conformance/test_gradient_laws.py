"""Training moves the same things by the same amounts, through the factors or through the effective weight."""

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from catalogue import build, compressed, each_group, each_group_of, inputs, random_fit
from outputs import last_counts, teacher_of
from torch import nn

from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.formats.base import balanced
from lrsearch.compress.matricize import to_weight
from lrsearch.spec.config import FinetuneConfig
from lrsearch.spec.plan import Plan
from lrsearch.task.data import Examples
from lrsearch.train.finetune import Training

CONFIG = FinetuneConfig(steps=3, batch=4, learning_rate=0.05, clip=1e3, optimizer="sgd", loss="outputs", augment="none")


def assert_near(value, expected, case, rtol=1e-6, atol=1e-6):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=lambda text: f"{case}: {text}")


@each_group
def test_both_training_forms_have_the_same_gradients(cases):
    base, x = build(cases[0].layer, torch.float64), inputs(cases[0].layer, torch.float64)
    for case in cases:
        small, fitted = compressed(case, torch.float64), random_fit(case.spec, case.plan)
        small(x).square().sum().backward()

        factors = tuple(f.double().requires_grad_() for f in fitted.factors)
        sparse = fitted.sparse.double().requires_grad_()
        effective = to_weight(replace(fitted, factors=factors, sparse=sparse * fitted.mask).effective(), case.spec)
        base.zero_grad()
        torch.func.functional_call(base, {"weight": effective}, (x,)).square().sum().backward()

        for own, leaf in zip(small.factors, factors, strict=True):
            assert_near(own.grad, leaf.grad, case)
            assert own.grad.any(), case
        if case.plan.kept(case.spec):
            assert_near(small.values.grad, sparse.grad[fitted.mask], case)
            assert small.values.grad.all(), case
        assert sparse.grad is None or not sparse.grad[~fitted.mask].any(), case
        if base.bias is not None:
            assert_near(small.bias.grad, base.bias.grad, case)


@each_group
def test_what_s_leaves_out_stays_zero_under_momentum_and_weight_decay(cases):
    x = inputs(cases[0].layer, torch.float64)
    for case in cases:
        if case.plan.kept(case.spec):
            small, mask = compressed(case, torch.float64), to_weight(random_fit(case.spec, case.plan).mask, case.spec)
            before = small.values.detach().clone()
            optimizer = torch.optim.SGD(small.parameters(), 1e-4, momentum=0.9, weight_decay=0.1, nesterov=True)
            for _ in range(3):
                optimizer.zero_grad()
                small(x).square().mean().backward()
                optimizer.step()
            assert (small.values != before).all(), case
            assert torch.equal(small.sparse_weight() != 0, mask), case


@each_group_of("linear", "conv", "conv grouped")
def test_a_finetune_trains_as_the_compressed_model_does(cases):
    for case in cases:
        assert_trains_as_the_compressed_model_does(case)


def assert_trains_as_the_compressed_model_does(case):
    """Three steps of the finetune in effective-weight form, and the same three on the factors by hand."""
    fits = {"0": random_fit(case.spec, case.plan)}
    model, x = nn.Sequential(build(case.layer), nn.Flatten()), inputs(case.layer, examples=4)
    even = {"0": replace(fits["0"], factors=tuple(balanced(fits["0"].factors)) if fits["0"].factors else ())}  # as a finetune begins
    small, reference = compress(model, [case.spec], Plan({"0": case.plan}), even), model(x).detach()
    examples = Examples((x, torch.zeros(4)), "train")
    teacher = teacher_of(deepcopy(model), examples, CONFIG)
    teacher.fit = examples
    write_effective(model, fits)
    training = Training(model, fits, teacher, CONFIG, CONFIG.learning_rate)
    training.best.judge = partial(last_counts, training.best)
    trained = training.run(CONFIG.steps)["0"]

    optimizer = torch.optim.SGD(small.parameters(), CONFIG.learning_rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / CONFIG.steps)))
    for _ in range(CONFIG.steps):
        optimizer.zero_grad()
        F.kl_div(small(x).log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean").backward()
        optimizer.step()
        schedule.step()

    assert_near(to_weight(trained.effective(), case.spec), small[0].weight, case, 1e-3, 1e-4)
    assert not torch.allclose(trained.effective(), fits["0"].effective(), atol=1e-3)
    assert not trained.sparse[~trained.mask].any()
    assert torch.equal(trained.mask, fits["0"].mask)
    assert_near(model[0].bias, small[0].bias, case, 1e-3, 1e-4)
