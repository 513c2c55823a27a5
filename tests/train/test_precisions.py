"""What a student trains of models in other types than float32; transposed convolutions are lent as they are written."""

import pytest
import torch
from torch import nn

from lrsearch.compress.apply import write_effective
from lrsearch.compress.fit import FitProblem
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.sparsify import support
from lrsearch.errors import ScoreError
from lrsearch.spec.plan import LayerPlan
from lrsearch.train.student import Student


def student_of(model, x, dtype=torch.float32):
    (layer,) = inventory(model, x).layers
    weight = to_matrix(model.get_parameter(f"{layer.name}.weight").detach().float(), layer)
    gram = torch.eye(layer.columns).expand(layer.groups, -1, -1)
    fit = FitProblem(layer, weight, gram).fit(LayerPlan(density=0.5))
    return Student(model, {layer.name: fit}, False, 5.0), layer, fit


def test_a_transposed_convolution_trains_the_weight_that_is_written():
    model, x = nn.Sequential(nn.ConvTranspose2d(4, 6, 3)).eval(), torch.randn(2, 4, 5, 5)
    student, layer, fit = student_of(model, x)
    lent = student._lent()["0.weight"].detach()
    write_effective(model, {layer.name: fit})
    assert torch.equal(lent, model[0].weight)


def test_small_steps_count_in_bfloat16():
    """Steps below the rounding of the model's own type add up."""
    model, x = nn.Sequential(nn.Linear(4, 3)).eval().to(torch.bfloat16), torch.randn(8, 4, dtype=torch.bfloat16)
    nn.init.constant_(model[0].bias, 1.0)
    student, *_ = student_of(model, x)
    with student:
        for step in range(200):
            student.step(x, lambda raw: raw.float().sum(1).mean(), 1e-5, f"step {step}")
    student.write()
    assert (model[0].bias < 1).all()


def test_a_loss_that_is_not_finite_is_told_with_its_own_step():
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(8, 4)
    student, *_ = student_of(model, x)
    with student:
        for step in range(5):
            student.step(x, lambda raw, step=step: raw.sum() * (float("nan") if step >= 2 else 1), 1e-5, f"step {step}")
    with pytest.raises(ScoreError, match="step 2: the finetune loss must be finite"):
        student.write()


def test_the_largest_are_kept_of_bfloat16():
    values = torch.tensor([[1.0, -3.0, 0.5, 2.0]], dtype=torch.bfloat16)
    assert support(values, 2).tolist() == [[False, True, False, True]]
