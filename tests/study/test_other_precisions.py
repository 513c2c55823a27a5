"""Models in other types than float32 are finetuned, recovered and exported."""

import pytest
import torch
from jobs import searching

import lrsearch

PRECISIONS = (torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("masks", ["fixed", "reselect"])
def test_a_finetune_recovery_and_export_of_any_precision(job, dtype, masks):
    parts = {role: (job[role][0].to(dtype), job[role][1]) for role in ("calibration", "score", "train")}
    finetune = {"steps": 4, "rungs": 2, "batch": 25, "masks": masks, "reselect_every": 1}
    model = job["model"].to(dtype)
    result = lrsearch.search(
        **{**searching(job, trials=2, control_points=1, sampler="random"), **parts, "model": model}, proxy={"finetune": finetune},
    )
    assert (result.trials.rung == 2).any()
    assert {p.dtype for p in result.load(0).parameters()} == {dtype}
    report = lrsearch.recover(job["out"], model=model, **parts, index=0, epochs=1, batch=25)
    assert report.after.fidelity > report.before.fidelity
    certificate = result.export(job["out"] / "export", index=0)
    assert certificate.failures == []
