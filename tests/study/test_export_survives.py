"""An export outlives its exporter: weights and certificate stay where ONNX cannot be made, and nothing half made stays behind."""

import os
import signal

import pytest
import torch
from filelock import FileLock
from torch import nn

from lrsearch.deploy.isolated import isolated
from lrsearch.errors import ModelError
from lrsearch.report.certificate import Certificate
from lrsearch.workflows.steps import export_folder

WHOLE = {"weights.safetensors", "plan.json", "certificate.json", "certificate.md"}


def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGSEGV)


def raises(*_, **__):
    raise KeyError("of a library\nthat nobody knows")


@pytest.mark.parametrize(("exporter", "said"), [
    (dies, "got a process that ended with SIGSEGV"), (raises, "got KeyError: 'of a library"), (lambda *_, **__: os._exit(3), "exit code 3"),
], ids=["killed", "raises", "exits"])
def test_weights_and_certificate_stay_where_the_exporter_fails(result, job, monkeypatch, exporter, said):
    monkeypatch.setattr(export_folder, "exported", exporter)
    certificate = result.export(job["out"] / "export", index=0)
    assert certificate.unchecked["onnx"].startswith("not made, because model.onnx: torch's exporter: must run on this model;")
    assert said in certificate.unchecked["onnx"]
    assert {p.name for p in (job["out"] / "export").iterdir()} == WHOLE
    assert Certificate.load(job["out"] / "export").unchecked["onnx"] == certificate.unchecked["onnx"]
    assert certificate.failures == []
    assert not list(job["out"].glob(".exporting-*"))


def test_what_a_killed_export_left_goes_with_the_next_one(result, job, monkeypatch):
    monkeypatch.setattr(export_folder, "exported", raises)
    left, used = job["out"] / ".exporting-dead", job["out"] / ".exporting-busy"
    for folder in (left, used):
        folder.mkdir()
        (folder / "half").write_text("x")
        (folder / ".lock").touch()
    with FileLock(used / ".lock"):
        result.export(job["out"] / "export", index=0)
        assert not left.exists()
        assert (used / "half").exists()


def test_work_of_its_own_process_returns_what_it_made():
    model, x = nn.Linear(64, 64), torch.randn(512, 64)
    with torch.no_grad():
        wanted = float(model(x).sum())
        found = isolated(lambda: str(float(model(x).sum())).encode(), "here")
    assert float(found) == pytest.approx(wanted, rel=1e-4)
    assert len(isolated(lambda: b"x" * 2**22, "here")) == 2**22


def test_memory_exhausted_in_its_process_is_told():
    def exhausted():
        raise MemoryError

    with pytest.raises(ModelError, match="here: must run on this model; got MemoryError"):
        isolated(exhausted, "here")
