"""What runs a model: a backend builds a module for an input shape and gives back calls of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from lrsearch.deploy.apart import ApartError
from lrsearch.deploy.onnx_export import Flat, arrays
from lrsearch.deploy.onnx_graph import onnx_model
from lrsearch.errors import ConfigError, LatencyError
from lrsearch.latency.runner import SESSIONS, Runner, onnx_runners
from lrsearch.spec.registry import Registry
from lrsearch.task.forward import Inputs, arguments, copied, tensors


class Backend(Protocol):
    """A runtime on the CPU.

    Attributes:
        name: in ``latency.backend``.
    """

    name: ClassVar[str]

    def version(self) -> str:
        """Of the runtime.

        Raises:
            ConfigError: it is not installed.
        """

    def build(self, module: nn.Module, sample: Inputs, threads: int) -> list[Runner]:
        """Calls of ``module``, deployed, on ``sample``, with ``threads`` threads, that return when it is done: one of each
        session, of as many as the runtime may place differently in memory."""


BACKENDS: Registry[Backend] = Registry(
    "backend", "lrsearch.backends", base="lrsearch.extend.Backend", register="lrsearch.extend.BACKENDS.register", place="latency.backend",
)  # fmt: skip


def backend(name: str) -> Backend:
    """The backend ``name``.

    Raises:
        ConfigError: there is none, or its package is not installed.
    """
    found = BACKENDS[name]
    found.version()
    return found


def _installed(package: str, *more: str) -> str:
    """The version of ``package``, when it and ``more`` are there."""
    try:
        return {name: version(name) for name in (package, *more)}[package]
    except PackageNotFoundError as error:
        raise ConfigError(
            f"this backend needs the package {error.name}", value="not installed", place="latency.backend",
            remedy=f"pip install {' '.join((package, *more))}",
        ) from None


class OnnxBackend(ABC):
    """A runtime that reads ONNX; its package has its name."""

    name: ClassVar[str]

    def version(self) -> str:
        return _installed(self.name, "onnx", "onnxscript")

    def build(self, module: nn.Module, sample: Inputs, threads: int) -> list[Runner]:
        return self.load(self.model(module, sample), sample, threads)

    def model(self, module: nn.Module, sample: Inputs) -> bytes:
        """``module`` as a serialised ONNX model.

        Raises:
            LatencyError: torch cannot export it.
        """
        try:
            return onnx_model(module, sample)
        except ApartError as error:
            raise LatencyError(
                "torch must be able to export what is timed to ONNX", value=str(error).strip().splitlines()[0], place="latency.backend",
                remedy="Time it by the backend torch.",
            ) from error

    @abstractmethod
    def load(self, model: bytes, sample: Inputs, threads: int) -> list[Runner]:
        """Calls of a serialised ONNX model on an input like ``sample``; see :meth:`Backend.build`."""


@BACKENDS.register
class OnnxRuntime(OnnxBackend):
    """ONNX Runtime with all its graph optimisations."""

    name = "onnxruntime"

    def load(self, model: bytes, sample: Inputs, threads: int) -> list[Runner]:
        return onnx_runners(model, threads, list(arrays(sample).values()))


@BACKENDS.register
class OpenVino(OnnxBackend):
    """OpenVINO for latency, in float32: its default is bfloat16 where the processor has that."""

    name = "openvino"

    def load(self, model: bytes, sample: Inputs, threads: int) -> list[Runner]:
        return [self._session(model, sample, threads) for _ in range(SESSIONS)]

    def _session(self, model: bytes, sample: Inputs, threads: int) -> Runner:
        request = self.compiled(model, threads).create_infer_request()
        for number, x in enumerate(arrays(sample).values()):
            request.set_input_tensor(number, import_module("openvino").Tensor(x, shared_memory=False))

        def run() -> None:
            request.start_async()
            request.wait()

        return run

    def compiled(self, model: bytes, threads: int) -> Any:
        """OpenVINO's compiled model."""
        core = import_module("openvino").Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1",
        }
        return core.compile_model(core.read_model(model), "CPU", settings)


@BACKENDS.register
class Torch:
    """PyTorch as it is."""

    name = "torch"

    def version(self) -> str:
        return torch.__version__

    def build(self, module: nn.Module, sample: Inputs, threads: int) -> list[Runner]:
        return [_call(module, sample, threads)]


@BACKENDS.register
class TorchCompile(Torch):
    """``torch.compile``; needs a C++ compiler, and seconds for every model."""

    name = "torch-compile"

    def build(self, module: nn.Module, sample: Inputs, threads: int) -> list[Runner]:
        given = tuple(tensors(sample))
        graph = torch.export.export(Flat(module, sample), given).module()  # code of its own: dynamo compiles one code only so often
        return [_call(torch.compile(graph, dynamic=False), given, threads)]


def _call(module: Callable[..., Any], sample: Inputs, threads: int) -> Runner:
    torch.set_num_threads(threads)  # for the whole process: whoever measures puts it back
    own = copied(sample)

    def run() -> None:
        with torch.inference_mode():
            args, kwargs = arguments(own)
            module(*args, **kwargs)

    def run_on_copies() -> None:
        with torch.inference_mode():
            args, kwargs = arguments(copied(sample))
            module(*args, **kwargs)

    run()  # compiles
    unchanged = all(map(torch.equal, tensors(own), tensors(sample)))
    return run if unchanged else run_on_copies  # a model that changes its input would get another one at every call
