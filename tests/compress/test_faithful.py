"""Layers that are computed other than plainly are found by trying, and only they."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrsearch.compress import faithful
from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.faithful import REASON, plain_layers, refuse_unfaithful
from lrsearch.compress.inventory import inventory
from lrsearch.compress.parametrised import copied
from lrsearch.compress.prepare import prepare
from lrsearch.errors import ModelError
from lrsearch.spec.plan import LayerPlan, Plan


class Net(nn.Module):
    """Layers ``a`` to ``d``; subclasses compute with ``b`` in a way of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.d(self.c(self.middle(self.a(x).relu()).relu()).relu())

    def middle(self, x):
        return self.b(x)


class ByType(Net):
    def middle(self, x):
        return self.b(x) if isinstance(self.b, nn.Linear) else x


class Clamped(Net):
    def middle(self, x):
        self.b.weight.data.clamp_(-0.2, 0.2)
        return self.b(x)


class Normalised(Net):
    """Sets its weight anew, from another, before each call."""

    def middle(self, x):
        with torch.no_grad():
            self.b.weight.copy_(F.normalize(self.b.weight, dim=1))
        return self.b(x)


class Cached(Net):
    """Reads the weight from a list that it made when it was built."""

    def __init__(self):
        super().__init__()
        self.kept = [self.b.weight]

    def middle(self, x):
        return self.b(x) * 0 + F.linear(x, self.kept[0], self.b.bias)


class Asking(Net):
    def middle(self, x):
        return self.b.to(torch.float32)(x) + self.b.weight_scale if hasattr(self.b, "weight_scale") else self.b.bilinear(x)


class Beside(Net):
    """Calls the layer and reads its weight as well, which a compressed layer has too."""

    def middle(self, x):
        return self.b(x) + 0.1 * F.linear(x, self.b.weight / self.b.weight.norm())


class Random(Net):
    def middle(self, x):
        return F.dropout(self.b(x), 0.5, training=True)


class Tupled(Net):
    def forward(self, x):
        return {"logits": super().forward(x), "more": [(x > 0).sum(), None]}


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.b.register_forward_hook(lambda module, inputs, output: 3 * output + 1)
        self.c.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def layers_of(model, x):
    ready = prepare(model)
    return plain_layers(ready, inventory(ready, x), x)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [ByType, Clamped, Normalised, Cached])
def test_a_layer_that_is_not_computed_plainly_is_refused_by_name_and_the_others_are_not(kind, left_alone):
    model = kind()
    model(X)
    with left_alone(model):
        found = layers_of(model, X)
    assert found.refused == {"b": REASON}
    assert [layer.name for layer in found.layers] == ["a", "c", "d"]
    assert found.shares["b"] == pytest.approx(72 / 243)


@pytest.mark.parametrize("kind", [Net, Beside, Random, Tupled, Hooked])
def test_what_a_compressed_layer_does_as_well_is_not_refused(kind):
    found = layers_of(kind(), X)
    assert found.refused == {}
    assert len(found.layers) == 4


@torch.no_grad()
def test_hooks_of_the_user_stay_on_compressed_layers(white_fits):
    model = Hooked()
    layers = inventory(model, X).layers
    plan = Plan({layer.name: LayerPlan(density=0.99) for layer in layers})
    small = compress(model, layers, plan, white_fits(model, layers, plan))
    assert float((small(X) - model(X)).norm() / model(X).norm()) < 0.1
    assert not small.b._forward_hooks.keys() ^ model.b._forward_hooks.keys()


def test_values_set_after_construction_are_those_that_count():
    conv = nn.Conv2d(3, 4, 3)
    conv.padding, conv.stride, conv.dilation = (1, 2), (2, 1), (1, 2)
    model, x = nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(2)), torch.randn(2, 3, 8, 9)
    model(x)
    assert len(layers_of(model, x).layers) == 2


def test_a_model_in_half_precision_is_not_refused_for_its_rounding():
    found = layers_of(Net().bfloat16(), X.bfloat16())
    assert len(found.layers) == 4


class Rarely(Net):
    """Clamps a weight for inputs as the inventory does not see them."""

    def middle(self, x):
        weight = self.b.weight.clamp(-0.1, 0.1) if float(x.max()) > 30 else self.b.weight
        return F.linear(x, weight, self.b.bias) if float(x.max()) > 30 else self.b(x)


class Overwritten(Net):
    """Sets what the weight is, where it is a plain layer, for inputs as the inventory does not see them."""

    def middle(self, x):
        if float(x.max()) > 30 and isinstance(self.b, nn.Linear):
            return F.linear(x, self.b.weight.clamp(-0.1, 0.1), self.b.bias)
        return self.b(x)


def saved(model, white_fits):
    """The compressed model, and the same with L + S in its dense layers."""
    layers = inventory(model, X).layers
    plan = Plan({layer.name: LayerPlan(density=0.5) for layer in layers})
    fits = white_fits(model, layers, plan)
    small = compress(model, layers, plan, fits)
    write_effective(model, fits)
    return small, model, layers


def test_what_is_saved_is_compared_with_its_effective_weights_and_the_layer_at_fault_is_named(white_fits):
    small, effective, layers = saved(Overwritten(), white_fits)
    refuse_unfaithful(small, effective, layers, X, "here")
    with pytest.raises(ModelError, match=r"here: .*weights L \+ S compute; got b\."):
        refuse_unfaithful(small, effective, layers, 100 * X, "here")


@pytest.mark.parametrize(("kind", "dtype"), [(Net, torch.float32), (Net, torch.bfloat16), (Rarely, torch.float32), (Random, torch.float32)])
def test_rounding_and_what_both_do_alike_are_no_fault(kind, dtype, white_fits):
    small, effective, layers = saved(kind(), white_fits)
    refuse_unfaithful(small.to(dtype), effective.to(dtype), layers, 100 * X.to(dtype), "here")


def test_layers_are_tried_on_one_copy_of_the_model_at_a_time(monkeypatch):
    made, alive = [], []

    def counted(model):
        alive.append(sum(each() is not None for each in made))
        made.append(weakref.ref(copy := copied(model)))
        return copy

    monkeypatch.setattr(faithful, "copied", counted)
    layers_of(ByType(), X)
    assert len(alive) > 2
    assert not any(alive)
