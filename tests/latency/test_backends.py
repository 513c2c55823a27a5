from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch

from lrsearch.errors import ConfigError
from lrsearch.latency import backends
from lrsearch.latency.backends import BACKENDS, backend
from lrsearch.latency.runner import SESSIONS

HERE = [name for name in BACKENDS if name != "torch-compile" and (name != "openvino" or find_spec("openvino"))]


@pytest.mark.parametrize("name", HERE)
def test_a_backend_builds_and_runs_a_model(name, tiny_model, tiny_data):
    threads = torch.get_num_threads()
    try:
        runners = backend(name).build(tiny_model, tiny_data[0][:2], 1)
        assert [run() for run in runners] == [None] * (1 if name == "torch" else SESSIONS)
    finally:
        torch.set_num_threads(threads)
    assert backend(name).version()[0].isdigit()


@pytest.mark.skipif(not find_spec("openvino"), reason="needs OpenVINO")
def test_openvino_computes_in_float32(tiny_model, tiny_data):
    from lrsearch.deploy.onnx_graph import onnx_model

    compiled = BACKENDS["openvino"].compiled(onnx_model(tiny_model, tiny_data[0][:1]), 1)
    assert "float32" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    with torch.no_grad():
        expected = tiny_model(tiny_data[0][:1])
    torch.testing.assert_close(torch.from_numpy(compiled(tiny_data[0][:1].numpy())[0]), expected, rtol=1e-4, atol=1e-4)


def test_compiled_modules_have_code_of_their_own(monkeypatch, tiny_model, tiny_data):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled.append(module) or module)
    for _ in range(2):
        (run,) = BACKENDS["torch-compile"].build(tiny_model, tiny_data[0][:1], torch.get_num_threads())
        run()
    assert compiled[0].forward.__code__ is not compiled[1].forward.__code__


def test_an_unknown_backend_is_told_the_known_ones():
    with pytest.raises(ConfigError, match=r"latency\.backend: must be a backend; got tflite\. One of onnxruntime, openvino, torch, "):
        backend("tflite")


@pytest.mark.parametrize(("name", "missing"), [("openvino", "openvino"), ("openvino", "onnx"), ("onnxruntime", "onnxruntime")])
def test_a_backend_that_is_not_installed_names_the_remedy(name, missing, monkeypatch):
    def lacking(package):
        if package == missing:
            raise PackageNotFoundError(package)
        return version("torch")

    monkeypatch.setattr(backends, "version", lacking)
    with pytest.raises(ConfigError, match=rf"needs the package {missing}; got not installed\. pip install {name} onnx onnxscript"):
        backend(name)
