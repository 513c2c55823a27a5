"""Awkward inputs and weights: every fit is finite, has its size, and is no worse than the zero weight."""

import pytest
import torch
from catalogue import ACCEPTED, FORMATS, each_few, error, fit, of_layer, problem_of, spec_of

from lrsearch.compress.fit import FitProblem

NAMES = ("conv", "linear", "conv n to 1", "conv 1 to n", "linear n to 1", "linear 1 to n")
FORMS = ("dense", *FORMATS)


def awkward_grams(spec):
    """Name → Gram matrix ``(groups, columns, columns)``, with inputs ordered by channel."""
    groups, _, columns = spec.matrix_shape
    generator, channel = torch.Generator().manual_seed(3), torch.arange(columns) * spec.channels // columns
    x = torch.randn(groups, 4 * columns, columns, generator=generator)
    x = x + 0.5 * x.roll(1, 2)
    axes = torch.linalg.qr(torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)).Q

    def of(rows):
        return rows.mT @ rows / rows.shape[1]

    return {
        "two examples": of(x[:, :2]),
        "condition 1e12": ((axes * torch.logspace(0, -12, columns, dtype=torch.float64)) @ axes.mT).float(),
        "constant channels": of(torch.where(channel % 2 == 0, 3.0, x)),
        "dead inputs": of(torch.where(channel < spec.channels // 2, 0.0, x)),
        "one loud channel": of(torch.where(channel == 0, 1e4 * x, x)),
        "equal inputs": torch.full((groups, columns, columns), 4.0),
        "no inputs": torch.zeros(groups, columns, columns),
    }


def awkward_weights(spec):
    weight = torch.randn(spec.matrix_shape, generator=torch.Generator().manual_seed(4)) / 10
    return {
        "zero": torch.zeros_like(weight),
        "equal": torch.ones_like(weight),
        "half of it zero": torch.where(torch.arange(spec.columns) < spec.columns // 2, weight, 0.0),
        "of rank one": weight[:, :, :1] * weight[:, :1],
        "float16": weight.half(),
        "bfloat16": weight.bfloat16(),
    }


def some(name, form):
    """Sparse only: all patterns; else low-rank alone and, for the larger layers, with a pattern that differs from format to format."""
    cases = of_layer(name, form)
    if form == "dense" or name not in NAMES[:2]:
        return [case for case in cases if not case.plan.rank or not case.plan.density]
    joint = cases[1:]
    return [cases[0], joint[sum(f"{name}{form}".encode()) % len(joint)]]


def assert_sane(case, problem, gram):
    fitted = problem.fit(case.plan)
    effective, weight = fitted.effective(), problem.weight
    assert effective.isfinite().all(), case
    assert all(f.isfinite().all() and f.abs().max() <= 1e3 * max(1.0, float(weight.abs().max())) for f in fitted.factors), case
    assert int(fitted.mask.sum()) == case.plan.kept(case.spec), case
    assert not fitted.sparse[~fitted.mask].any(), case
    nothing = problem.error(torch.zeros_like(weight))
    assert problem.error(effective) <= 1.0001 * nothing + 1e-12, case
    undamped, rest = gram.double(), (weight - effective).double()
    assert ((rest @ undamped) * rest).sum() <= 1.01 * ((weight.double() @ undamped) * weight.double()).sum() + 1e-9, case


def each_of(labels):
    return each_few(("name", "form", "label"), ((n, f, label) for n in NAMES for f in FORMS if of_layer(n, f) for label in labels))


@each_of(awkward_grams(spec_of("linear")))
def test_awkward_inputs_give_sane_fits(name, form, label):
    spec = spec_of(name)
    weight, gram = torch.randn(spec.matrix_shape, generator=torch.Generator().manual_seed(4)) / 10, awkward_grams(spec)[label]
    for case in some(name, form):
        assert_sane(case, FitProblem(spec, weight, gram), gram)


@each_of(awkward_weights(spec_of("linear")))
def test_awkward_weights_give_sane_fits(name, form, label):
    spec = spec_of(name)
    weight, gram = awkward_weights(spec)[label], awkward_grams(spec)["dead inputs"]
    cases = some(name, form)
    for case in cases if form == "dense" or label == "zero" else cases[:1]:
        assert_sane(case, FitProblem(spec, weight, gram), gram)


@pytest.mark.parametrize(("name", "form"), [(n, f) for n, f in ACCEPTED if n in NAMES[:2]])
@pytest.mark.parametrize(("inputs_by", "weight_by"), [(1e-4, 1), (1e5, 1), (1, 1e-6), (1, 1e6)])
def test_the_units_of_inputs_and_weights_do_not_matter(name, form, inputs_by, weight_by):
    problem, spec = problem_of(name), spec_of(name)
    scaled = FitProblem(spec, problem.weight * weight_by, problem.gram * inputs_by**2)
    for case in some(name, form) if form == "dense" else some(name, form)[:1]:
        value = scaled.error(scaled.fit(case.plan).effective()) / scaled.error(torch.zeros_like(problem.weight))
        assert value <= 1.05 * error(name, fit(name, case.plan)) + 0.003, case
