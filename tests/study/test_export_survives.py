"""An export outlives its exporter: weights and certificate stay where ONNX cannot be made, and nothing half made stays behind."""

import os
import signal

import pytest
from filelock import FileLock

from lrsearch.deploy import onnx_export
from lrsearch.report.certificate import Certificate

WHOLE = {"README.md", "weights.safetensors", "plan.json", "certificate.json", "certificate.md"}


def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGSEGV)


def raises(*_, **__):
    raise KeyError("of a library\nthat nobody knows")


@pytest.mark.parametrize(("exporter", "said"), [
    (dies, "its process was ended by SIGSEGV"), (raises, "got KeyError: 'of a library"), (lambda *_, **__: os._exit(3), "exit code 3"),
], ids=["killed", "raises", "exits"])
def test_weights_and_certificate_stay_where_the_exporter_fails(result, job, monkeypatch, exporter, said):
    monkeypatch.setattr(onnx_export, "_imported", lambda: None)
    monkeypatch.setattr(onnx_export, "_exported", exporter)
    certificate = result.export(job["out"] / "export", index=0)
    assert certificate.unchecked["onnx"].startswith("not made, because model.onnx: torch must be able to export the model to ONNX;")
    assert said in certificate.unchecked["onnx"]
    assert {p.name for p in (job["out"] / "export").iterdir()} == WHOLE
    assert Certificate.load(job["out"] / "export").unchecked["onnx"] == certificate.unchecked["onnx"]
    assert certificate.failures == []
    assert not list(job["out"].glob(".exporting-*"))


def test_what_a_killed_export_left_goes_with_the_next_one(result, job, monkeypatch):
    monkeypatch.setattr(onnx_export, "_imported", lambda: None)
    monkeypatch.setattr(onnx_export, "_exported", raises)
    left, used = job["out"] / ".exporting-dead", job["out"] / ".exporting-busy"
    for folder in (left, used):
        folder.mkdir()
        (folder / "half").write_text("x")
        (folder / ".lock").touch()
    with FileLock(used / ".lock"):
        result.export(job["out"] / "export", index=0)
        assert not left.exists()
        assert (used / "half").exists()
