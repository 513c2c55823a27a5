"""Work in a process of its own: its result, its error and its end reach the caller."""

import os
import signal
import warnings

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.deploy.apart import ApartError, apart
from lrsearch.deploy.onnx_export import exported
from lrsearch.errors import ArtifactError
from lrsearch.workflows.steps.export_folder import onnx_form


def test_what_it_made_is_returned_and_what_it_changed_is_not():
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apart(lambda: seen.append(1) or bytes(2**20)) == bytes(2**20)
    assert seen == []


def test_threads_that_torch_has_here_do_not_hinder_it():
    torch.randn(600, 600) @ torch.randn(600, 600)
    assert apart(lambda: str(float((torch.ones(600, 600) @ torch.ones(600, 600)).mean())).encode()) == b"600.0"


def wrong() -> bytes:
    raise KeyError("a key")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (wrong, "KeyError: 'a key'"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "its process was ended by SIGSEGV"),
        (lambda: os._exit(3), "its process ended with exit code 3"),
    ],
)
def test_what_ended_it_is_said(work, said):
    with pytest.raises(ApartError, match=f"^{said}$"):
        apart(work)


class ReadsData(nn.Module):
    """Reads a weight by ``.data``, on which torch's exporter of some versions dies."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) + 0.1 * F.linear(x, self.layer.weight.data * 0.5)


@pytest.mark.slow
def test_a_model_that_reads_a_weights_data_is_exported():
    model, x = ReadsData().eval(), torch.randn(2, 4)
    session = onnxruntime.InferenceSession(exported(model, x))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x))
    assert type(Tensor.data).__name__ == "getset_descriptor"  # as it was


class Kills(nn.Module):
    """Ends the process of the exporter, as some models do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if torch.compiler.is_exporting():
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.layer(x)


@pytest.mark.slow
def test_a_model_that_kills_the_exporter_is_refused_in_one_line():
    with pytest.raises(ArtifactError, match=r"^model\.onnx: torch must be able to export .*SIGSEGV.*does without\.$"):
        onnx_form(Kills(), torch.randn(2, 4), None)
