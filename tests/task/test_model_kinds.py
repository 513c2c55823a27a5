"""Wrappers are opened, and what cannot be compressed is refused in one line; tensors are found wherever they are."""

import gc
import weakref
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from kinds_of_models import Found
from torch import nn

from lrsearch.errors import ModelError
from lrsearch.task.forward import batches_of, first_tensor, forward, named_tensors, output_tensors, rows
from lrsearch.task.model_kinds import refuse_unsupported, unwrapped

A, B = torch.zeros(2), torch.ones(2)


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (A, ["output"]), ((A, B), ["output_0", "output_1"]), ([A, None, 3, "text", (B,)], ["output_0", "output_4_0"]),
        ({"x": A, "y": {"z": B}}, ["x", "y.z"]), (Found(A, hidden=(B,)), ["logits", "hidden_0"]),
        (OrderedDict(last=A, first=B), ["last", "first"]), (SimpleNamespace(a=A, b=SimpleNamespace(c=[B])), ["a", "b.c_0"]),
        (namedtuple("Pair", "left right")(A, B), ["left", "right"]), ((A, A), ["output_0"]), ((nn.Linear(1, 1), torch, print), []),
    ],
    ids=str,
)  # fmt: skip
def test_tensors_are_found_by_name_each_once(raw, names):
    found = output_tensors(raw)
    assert list(found) == names
    assert all(any(t is each for each in (A, B)) for t in found.values())


def test_tensors_in_what_contains_itself_are_found_once():
    loop = SimpleNamespace(a=A)
    loop.self, loop.list = loop, [loop, B]
    assert list(named_tensors(loop)) == ["a", "list_1"]


def test_the_first_tensor_of_a_call():
    assert first_tensor((None, B), {"x": A}) is B
    assert first_tensor((), {"scale": 2, "x": {"y": A}}) is A
    assert first_tensor((), {}) is None


def test_a_batch_repeats_its_examples_and_keeps_what_has_no_batch():
    x = {"a": torch.arange(2), "temperature": torch.tensor(3.0), "b": (torch.arange(4.0).view(2, 2),), "flag": True}
    made = batches_of(x, 5)
    assert made["a"].tolist() == [0, 1, 0, 1, 0]
    assert made["b"][0][:, 0].tolist() == [0, 2, 0, 2, 0]
    assert (made["temperature"].item(), made["flag"]) == (3.0, True)
    assert rows(x, torch.tensor([1]))["a"].tolist() == [1]


def test_wrapped_models_are_unwrapped():
    model = nn.Sequential(nn.Linear(3, 2))
    assert unwrapped(model) is model
    compiled, parallel = torch.compile(model), nn.DataParallel(model)
    for wrapped in (compiled, parallel, nn.DataParallel(compiled), torch.compile(parallel)):
        assert unwrapped(wrapped) is model


def test_models_with_compiled_parts_are_copied_without():
    inner = nn.Linear(3, 2)
    model, in_place = nn.Sequential(torch.compile(inner), nn.ReLU()), nn.Sequential(nn.Linear(3, 2))
    in_place.compile()
    made = unwrapped(model)
    assert type(made[0]) is nn.Linear
    assert torch.equal(made[0].weight, inner.weight)
    assert isinstance(model[0], torch._dynamo.OptimizedModule)
    assert in_place._compiled_call_impl is not None
    made = unwrapped(in_place)
    assert made._compiled_call_impl is None
    assert forward(made, torch.ones(1, 3)).shape == (1, 2)


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, torch.qint8)


def exported(module=True):
    program = torch.export.export(nn.Linear(4, 4), (torch.zeros(2, 4),))
    return program.module() if module else program


UNSUPPORTED = {
    "scripted": (lambda: torch.jit.script(nn.Linear(4, 4)), "TorchScript cannot be taken apart"),
    "traced": (lambda: nn.Sequential(torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4))), "0: TorchScript cannot be taken apart"),
    "dynamic int8": (quantised, "0: a quantised model has no weights"),
    "lazy": (lambda: nn.Sequential(nn.ReLU(), nn.LazyLinear(4)), "1: lazy modules have no weights yet"),
    "lazy statistics": (lambda: nn.LazyBatchNorm1d(affine=False), "lazy modules have no weights yet"),
    "exported": (exported, "an exported program has operators instead of layers"),
    "program": (lambda: exported(module=False), "an exported program has operators instead of layers"),
    "function": (lambda: len, "must be a torch.nn.Module"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_compressed_is_refused_in_one_line(name):
    build, message = UNSUPPORTED[name]
    with pytest.raises(ModelError, match=message) as caught:
        refuse_unsupported(build())
    assert "\n" not in str(caught.value)


def test_what_can_be_compressed_is_not_refused():
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 4, 1)), torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))):
        refuse_unsupported(model)


def test_what_was_looked_at_is_let_go_at_once():
    """Not when Python next looks for cycles: hooks look at the activations of every layer."""
    gc.disable()
    try:
        x = torch.zeros(2)
        gone = weakref.ref(x)
        assert first_tensor((), {"a": [x]}) is x
        del x
        assert gone() is None
    finally:
        gc.enable()
