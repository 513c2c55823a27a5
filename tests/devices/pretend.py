"""A device that no machine has: tensors on ``pretend`` hold their values in the CPU's memory, and refuse to meet tensors of the CPU.

So code for accelerators runs without one, with real values, and what CUDA refuses is refused: operations on tensors of both devices
(but single numbers, and indices), ``.numpy()``, and linear algebra in several threads at once. torch has places for backends that are
written in Python, see ``torch.utils.backend_registration``.
"""

import threading
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
_MOVES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
_kept = []  # the library's registrations live as long as it does


class Pretended(Tensor):
    """A tensor on the device; ``raw`` is a tensor of the CPU with its values."""

    @staticmethod
    def __new__(cls, raw):
        with torch.inference_mode(False):  # views made in inference mode are of tensors that have a version
            return Tensor._make_wrapper_subclass(
                cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=torch.device(NAME, 0),
            )

    def __init__(self, raw):
        self.raw = raw

    def __repr__(self):
        return f"Pretended({self.raw!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            made = Pretended(self.raw.clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                made._is_param = True
            memo[id(self)] = made
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.raw.__reduce_ex__(protocol)  # as torch.load(map_location="cpu") has it

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """What ``func`` returns, on the device unless it says otherwise; raises where CUDA does."""
    on_cpu = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and not isinstance(t, Pretended)]
    if func in _INDEXED:
        on_cpu = [t for t in (args[0], *args[2:]) if isinstance(t, Tensor) and not isinstance(t, Pretended)]
    if func not in _MOVES and any(t.dim() for t in on_cpu):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({func})")
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else torch.device(NAME)
    if wanted.type == NAME and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    given = {id(t.raw): t for t in tree_leaves((args, kwargs)) if isinstance(t, Pretended)}
    with _linear_algebra(func):
        found = func(*tree_map_only(Pretended, lambda t: t.raw, args), **tree_map_only(Pretended, lambda t: t.raw, kwargs))
    if wanted.type == "cpu" or (func is aten.copy_.default and not isinstance(args[0], Pretended)):
        return found if func is not aten.copy_.default else args[0]
    return tree_map_only(Tensor, lambda t: given[id(t)] if id(t) in given else Pretended(t), found)


_busy = threading.Lock()
entered = set()  # the threads that have done linear algebra


@contextmanager
def _linear_algebra(func):
    """One thread at a time: cuSOLVER's and MAGMA's loading is not safe in several."""
    if "linalg" not in func.name():
        yield
        return
    if not _busy.acquire(blocking=False):
        raise RuntimeError("lazy wrapper should be called at most once")
    try:
        entered.add(threading.get_ident())
        yield
    finally:
        _busy.release()


def _factories():
    """Every operator that makes a tensor of no other tensor."""
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or "names" in name:
            continue
        packet, _, overload = name.removeprefix("aten::").partition(".")
        try:
            func = getattr(getattr(aten, packet), overload or "default")
        except (AttributeError, RuntimeError):
            continue
        arguments, returns = func._schema.arguments, func._schema.returns
        made = len(returns) == 1 and str(returns[0].type) == "Tensor" and any(a.name == "device" for a in arguments)
        if made and not any("Tensor" in str(a.type) for a in arguments):
            yield name.removeprefix("aten::"), func


class _Module(_DummyBackendModule):
    """What ``torch.cuda`` is of CUDA; random values are the CPU's."""

    def get_rng_state(self, *_):
        return torch.get_rng_state()

    def set_rng_state(self, state, *_):
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


def register():
    """Make the device known to torch, once in a process."""
    if _kept:
        return
    _setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    for name, func in _factories():
        library.impl(name, lambda *args, func=func, **kwargs: computed(func, args, kwargs), "PrivateUse1")

    def copy_from(source, target, non_blocking=False):
        return computed(aten.copy_.default, (target, source, non_blocking), {})

    library.impl("_copy_from", copy_from, "PrivateUse1")
    _kept.append(library)
