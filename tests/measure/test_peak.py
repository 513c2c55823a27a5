import pytest
import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from lrsearch.errors import ModelError
from lrsearch.measure.peak import peak_bytes, traced

ALLOCATION, OPERATOR = torch._C._profiler._EventType.Allocation, torch._C._profiler._EventType.TorchOp


def allocations(event):
    """(time, address, bytes) of what torch's allocator did below ``event``; freed bytes are negative."""
    if event.tag == ALLOCATION:
        return [(event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size)]
    found = sorted(a for child in event.children for a in allocations(child))
    return without_scratch(found) if event.tag == OPERATOR else found


def without_scratch(found):
    """What an operator frees of what it allocates itself is its kernel's own."""
    kept = {}
    for time, address, size in found:
        if size < 0 and address in kept:
            del kept[address]
        else:
            kept[address] = (time, address, size)
    return list(kept.values())


def allocated_at_once(model, x):
    """Peak of torch's CPU allocator while the traced operations run, each value freed after its last use; and the input."""
    graph, state = traced(model, x), {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}
    graph.graph.eliminate_dead_code()  # an interpreter never frees what nothing reads
    interpreter = torch.fx.Interpreter(graph)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.no_grad():
        interpreter.run(*tree_leaves((state, x)), enable_io_processing=False)
    events = sorted(a for root in profiler.profiler.kineto_results.experimental_event_tree() for a in allocations(root))
    return x.nbytes + int(torch.tensor([size for *_, size in events]).cumsum(0).max())


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_efficientnet", 64), ("test_vit", 160), ("test_convnext", 64)])
def test_peaks_of_real_networks_are_what_the_allocator_holds(name, size):
    model, x = timm.create_model(name).eval(), torch.randn(2, 3, size, size)
    assert peak_bytes(model, x) == allocated_at_once(model, x)


def layers(*modules):
    return nn.Sequential(*modules)


BY_HAND = {
    "input and output": (layers(nn.Linear(10, 20)), 10 + 20),
    "the middle is freed": (layers(nn.Linear(10, 20), nn.Linear(20, 30), nn.Linear(30, 5)), 10 + 20 + 30),
    "an activation has input and output": (layers(nn.Linear(10, 20), nn.ReLU()), 10 + 20 + 20),
    "in place takes nothing": (layers(nn.Linear(10, 20), nn.ReLU(inplace=True)), 10 + 20),
    "views take nothing": (layers(nn.Linear(10, 20), nn.Unflatten(1, (4, 5)), nn.Flatten(), nn.Linear(20, 1)), 10 + 20 + 1),
    "nothing to do": (nn.Identity(), 10),
}


@pytest.mark.parametrize(("model", "values"), BY_HAND.values(), ids=BY_HAND)
def test_peaks_by_hand(model, values):
    assert peak_bytes(model.train(), torch.randn(3, 10)) == 4 * 3 * values
    assert all(m.training for m in model.modules())


def test_what_a_shortcut_holds_is_counted():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 50), nn.Linear(50, 8)

        def forward(self, x):
            kept = self.first(x)
            return kept + self.third(self.second(kept))

    assert peak_bytes(Residual(), torch.randn(1, 4)) == 4 * (4 + 8 + 50 + 8)


def test_the_model_is_left_alone(tiny_model, tiny_data, left_alone):
    with left_alone(tiny_model):
        peak_bytes(tiny_model, tiny_data[0][:2])


def test_what_cannot_be_traced_is_one_clear_error():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="^peak_bytes: the operations must not depend on the values"):
        peak_bytes(Branching(), torch.randn(2, 3))
