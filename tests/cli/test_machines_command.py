"""The worker and move commands: a study begun elsewhere needs its name, its storage and the code."""

from pathlib import Path

import pytest

import lrsearch
from lrsearch.cli.main import main


def test_a_worker_needs_only_the_storage_the_name_and_the_code(write, folder, capsys):
    url = f"journal:///{folder}/shared.log"
    assert main(["search", write(), "--storage", url, "--name", "mine"]) == 0
    begun = lrsearch.open("runs/mine")
    Path("runs").rename("elsewhere")
    capsys.readouterr()
    join = ["worker", "--storage", url, "--study"]
    assert main([*join, "other", "tiny.yaml"]) == 2
    assert "must be the Optuna storage of a search; got no such study" in capsys.readouterr().err
    assert main([*join, "mine"]) == 2
    assert "a folder may not say which code runs; got zoo:" in capsys.readouterr().err
    assert main([*join, "mine", "tiny.yaml", "--timeout", "600"]) == 0
    joined = lrsearch.open("runs/mine")
    assert joined.trials.drop(columns="model").equals(begun.trials.drop(columns="model"))
    assert not Path("runs/mine/study.db").exists()


@pytest.mark.parametrize("ends", [("a", "b"), ("postgresql://host/a", "mysql://host/b")])
def test_a_study_moves_between_a_folder_and_a_storage(ends, capsys):
    assert main(["move", *ends]) == 2
    assert "a study moves between a folder and a storage; got two of a kind" in capsys.readouterr().err


def test_a_study_moves_to_a_journal_and_back(path, folder, capsys):
    before = lrsearch.open("runs/tiny").trials
    for ends in (("runs/tiny", f"journal:///{folder}/shared.log"), (f"journal:///{folder}/shared.log", "runs/tiny")):
        assert main(["move", *ends]) == 0
        assert capsys.readouterr().out == "moved 6 trials\n"
        assert lrsearch.open("runs/tiny").trials.equals(before)
    assert Path("runs/tiny/study.db").exists()
    assert not Path("runs/tiny/storage.json").exists()
