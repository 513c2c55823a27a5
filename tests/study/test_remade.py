"""Models of the front that are made again."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from jobs import FINETUNED, Notes, searching
from outputs import divergence

import lrsearch
from lrsearch.study.evaluator import Evaluator


@pytest.mark.parametrize("settings", [{}, FINETUNED], ids=["fitted", "finetuned"])
@pytest.mark.parametrize("lost", ["folder", "weights"])
def test_a_model_of_the_front_that_vanished_is_made_again(job, settings, lost):
    job, notes = {**job, **settings}, Notes()
    result = lrsearch.search(**job)
    gone = job["out"] / result.front.model[0]
    shutil.rmtree(gone) if lost == "folder" else (gone / "weights.safetensors").unlink()
    again = lrsearch.search(**job, progress=notes)
    assert again.trials.equals(result.trials)
    x = job["score"][0]
    with torch.no_grad():
        assert divergence(again.load(0)(x), job["model"](x)).mean().item() == pytest.approx(again.front.divergence[0], rel=1e-3, abs=1e-6)
    assert [note for note in notes.notes if "again" in note] == []
    assert "recorded" not in json.loads((gone / "plan.json").read_text())


def test_a_model_that_scores_otherwise_when_made_again_is_told_and_says_so(job, result, monkeypatch):
    notes, score = Notes(), Evaluator.score
    shutil.rmtree(job["out"] / result.front.model[0])

    def other(self, fits, place):
        scored = score(self, fits, place)
        return replace(scored, score=replace(scored.score, divergence=2 * scored.score.divergence))

    monkeypatch.setattr(Evaluator, "score", other)
    lrsearch.search(**job, progress=notes)
    row = result.front.iloc[0]
    (note,) = [n for n in notes.notes if "made again" in n]
    assert note.startswith(f"trial {row.trial}: made again, its model scores KL {2 * row.divergence:.4g}, not {row.divergence:.4g}; ")
    about = json.loads((job["out"] / row.model / "plan.json").read_text())
    assert (about["score"]["divergence"], about["recorded"]["divergence"]) == (pytest.approx(2 * row.divergence), row.divergence)


def test_without_time_it_is_said_which_models_are_gone(job, result, calls):
    notes = Notes()
    shutil.rmtree(job["out"] / result.front.model[0])
    lrsearch.search(**searching(job, timeout=1e-9), progress=notes)
    assert any(note.startswith(f"{result.front.model[0]} are gone") for note in notes.notes)
    assert calls == []


def test_the_front_says_whose_model_is_gone(result):
    assert result.front.saved.all()
    shutil.rmtree(result.folder / result.front.model[1])
    assert lrsearch.open(result.folder).front.saved.tolist() == [i != 1 for i in result.front.index]
