"""The recover command: a member of the front finetuned at length, which joins the front."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import lrsearch
from lrsearch.cli.main import main
from lrsearch.compress import artifact
from lrsearch.errors import ConfigError
from lrsearch.train import recover
from lrsearch.train.batchnorm import Correction
from lrsearch.train.range_test import RangeTest
from lrsearch.train.student import Student
from lrsearch.workflows.steps import recover_member
from lrsearch.workflows.steps.recover_member import COMPRESSED, chosen_member

STUDY = Path("runs/tiny")
RECOVER = ["--set", "recover={batch: 50, learning_rate: 0.03, loss: both}", "--epochs", "8"]


@pytest.fixture
def study(study):
    study["data"]["train"] = {"call": "zoo:data", "args": {"seed": 3, "n": 400}}
    return study


@pytest.fixture
def smallest(path) -> int:
    """The row of the smallest member."""
    return len(pd.read_csv(STUDY / "front.csv")) - 1


def recovered_rows() -> pd.DataFrame:
    front = pd.read_csv(STUDY / "front.csv")
    return front[front.recovered]


def test_the_recovered_member_joins_the_front_and_stays_when_the_search_goes_on(path, smallest, capsys):
    before = pd.read_csv(STUDY / "front.csv")
    assert main(["recover", path, "--index", str(smallest), *RECOVER]) == 0
    member = before.loc[smallest]
    folder = STUDY / "models" / f"recovered-{Path(member.model).name}"
    first, *others = capsys.readouterr().out.splitlines()[-3:]
    assert re.fullmatch(r"divergence \S+ -> \S+, metric \S+ -> \S+, after 56 steps", first)
    assert others == ["it became better and joined the front", f"written to {folder}"]
    (row,) = recovered_rows().to_dict("records")
    assert row["divergence"] < member.divergence
    assert (row["trial"], row["source"], row["params"], row["weight_bytes"]) == (
        member.trial, member.source, member.params, member.weight_bytes)
    assert row["finetune_steps"] == 56
    assert STUDY / row["model"] == folder
    assert (folder / "weights.safetensors").stat().st_size == row["weight_bytes"]
    assert artifact.read_plan(folder)[0] == artifact.read_plan(STUDY / member.model)[0]
    assert set(before.model) <= set(pd.read_csv(STUDY / "front.csv").model)
    page = (STUDY / "report.html").read_text()
    assert "recovered" in page
    assert main(["search", path, "--trials", "3"]) == 0
    again, = recovered_rows().to_dict("records")
    assert again | {"index": row["index"]} == row  # others may have joined before it
    assert (STUDY / row["model"] / "weights.safetensors").exists()
    import zoo

    certificate = lrsearch.verify(folder, model=zoo.model(), score=zoo.data(2))
    assert certificate.passed
    assert certificate.figures["divergence"] == pytest.approx(row["divergence"], abs=1e-3)


@pytest.mark.parametrize(("batchnorm", "settled"), [("frozen", False), ("free", None)])
def test_batchnorm_that_training_left_alone_is_settled_as_it_was(path, smallest, monkeypatch, batchnorm, settled):
    told = []
    monkeypatch.setattr(Correction, "apply_if_better", lambda self, model, settled=None: bool(told.append(settled)))
    assert main(["recover", path, "--index", str(smallest), *RECOVER, "--set", f"recover.batchnorm={batchnorm}"]) == 0
    assert told == [settled]


def test_killed_it_goes_on_with_the_epoch_it_was_in(path, smallest, monkeypatch):
    assert main(["recover", path, "--index", str(smallest), *RECOVER, "--out", "whole"]) == 0
    run, epochs = recover.Recovery._epoch, []

    def killed(self):
        epochs.append(self.epochs)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        run(self)

    monkeypatch.setattr(recover.Recovery, "_epoch", killed)
    arguments = ["recover", path, "--index", str(smallest), *RECOVER]
    assert main(arguments) == 130
    assert len(list(STUDY.glob("recovering-*.pt"))) == 1
    assert recovered_rows().empty
    assert main(arguments) == 0
    assert epochs == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert not list(STUDY.glob("recovering-*"))
    (row,) = recovered_rows().to_dict("records")
    assert (STUDY / row["model"] / "weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()
    assert main(arguments) == 0
    assert len(epochs) == 9, "what is finished is not done again"


def test_the_loss_that_was_found_is_lowered_also_when_it_goes_on(path, smallest, monkeypatch):
    found, lowered, run = [], [], recover.Recovery._epoch
    both = RangeTest(torch.ones(9), loss="both", tried={0.01: torch.full((9,), 0.5)})
    monkeypatch.setattr(recover_member, "range_test", lambda *_: found.append(both) or both)

    def killed(self):
        lowered.append(self.teacher.lowered)
        if len(lowered) == 2:
            raise KeyboardInterrupt
        run(self)

    monkeypatch.setattr(recover.Recovery, "_epoch", killed)
    arguments = ["recover", path, "--index", str(smallest), "--set", "recover.batch=50", "--epochs", "3"]
    assert [main(arguments), main(arguments)] == [130, 0]
    assert (lowered, len(found)) == (["both"] * 4, 1)


def test_each_epoch_and_its_loss_are_in_the_log(path, smallest):
    assert main(["recover", path, "--index", str(smallest), *RECOVER]) == 0
    told = re.findall(r"Recovering: (\d) of 8 done: loss (\S+)", (STUDY / "search.log").read_text())
    assert [int(epoch) for epoch, _ in told] == list(range(1, 9))
    assert float(told[-1][1]) < float(told[0][1])


def test_with_out_the_front_stays_as_it_was(path, smallest):
    before = (STUDY / "front.csv").read_bytes()
    assert main(["recover", path, "--pick", "params_ratio<=0.6", *RECOVER, "--out", "elsewhere"]) == 0
    assert (STUDY / "front.csv").read_bytes() == before
    import zoo

    assert lrsearch.load("elsewhere", zoo.model())(torch.ones(1, 3, 8, 8)).shape == (1, 3)


def test_what_does_not_become_better_is_told_and_stays_off_the_front(path, smallest, capsys):
    harmful = ["--set", "recover={batch: 50, learning_rate: 30.0, warmup: 0, patience: 1}"]
    assert main(["recover", path, "--index", str(smallest), *harmful]) == 0
    assert "it did not become better than the member it began with, which stays as it is; it is not on the front" in capsys.readouterr().out
    assert recovered_rows().empty


def test_from_python_with_gradual_sparsification(path, smallest, folder):
    import zoo

    report = lrsearch.recover(
        STUDY, model=zoo.model(), calibration=zoo.data(1), score=zoo.data(2), train=zoo.data(3, 400), index=smallest,
        epochs=16, batch=50, learning_rate=0.01, loss="both", gradual={"start": 0.5},
    )
    assert report.after.divergence < report.before.divergence
    plan, about = artifact.read_plan(report.folder)
    assert about["recovered"]["gradual"]["start"] == 0.5
    small = artifact.load(report.folder, zoo.model())
    assert all(m.plan == plan[n] for n, m in small.named_modules() if n in plan.layers)


def test_the_best_that_is_not_recovered_is_picked(path, smallest):
    main(["recover", path, "--index", str(smallest), *RECOVER])
    front = pd.read_csv(STUDY / "front.csv")
    row = front.index[front.recovered][0]
    assert main(["recover", path, "--index", str(row), *RECOVER]) == 2
    assert main(["recover", path, "--pick", f"params<={front.params[row]}", *RECOVER]) == 0
    assert len(recovered_rows()) == 1


def test_the_dense_model_is_not_recovered():
    front = pd.DataFrame({"divergence": [0.0, 0.1], "model": ["models/0001", "models/0002"], **{key: [0, 1] for key in COMPRESSED}})
    assert chosen_member(front, "divergence", "", None) == "models/0002"
    with pytest.raises(ConfigError, match="--index: must be a compressed member that the search found; got the dense model"):
        chosen_member(front, "divergence", "", 0)
    with pytest.raises(ConfigError, match="--pick: the front must have a compressed member"):
        chosen_member(front[:1], "divergence", "", None)


def test_a_step_that_does_not_fit_into_memory_is_one_line(path, smallest, capsys, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Student, "step", exhausted)
    for rate in ("0.03", "auto"):
        assert main(["recover", path, "--index", str(smallest), *RECOVER, "--set", f"recover.learning_rate={rate}"]) == 2
        assert re.match(r"lrsearch: .*must fit into memory.*Lower recover\.batch", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--index", "99"], r"--index: must be a row of the front, 0 to \d+; got 99"),
        (["--pick", "params_ratio<0.001"], r"a member of the front must satisfy every condition"),
        (["--study-folder", "runs"], r"runs: the folder must hold a study"),
        (["--set", "budget.params=0.5"], r"must belong to this configuration"),
        (["--set", "recover.epoch=3"], r"recover\.epoch: unknown key.*Did you mean 'epochs'\?"),
        (["--set", "recover.augment=zoo:nothing"], r"recover\.augment: must name an importable function"),
        (["--set", "data.train.args.seed=2"], r"must belong to this configuration"),
        (["--index", "0", "--out", "."], r"only a recovered model may be replaced"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(path, capsys, command, message):
    assert main(["recover", path, *command]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"lrsearch: .*{message}", err)
    assert err.count("\n") == 1


def test_an_unfinished_recovery_with_other_settings_is_refused(path, smallest, capsys, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    def run(*more):
        return main(["recover", path, "--index", str(smallest), *RECOVER, *more])

    epoch = recover.Recovery._epoch
    monkeypatch.setattr(recover.Recovery, "_epoch", lambda self: epoch(self) if not self.epochs else stop(self))
    assert run() == 130
    capsys.readouterr()
    assert run("--set", "recover.learning_rate=0.02") == 2
    assert re.search(r"recovering-\d{4}\.pt: an unfinished training must go on with its settings", capsys.readouterr().err)


def test_other_score_data_are_refused(path, smallest, folder):
    import zoo

    with pytest.raises(lrsearch.LrsearchError, match=r"data\.score: must be the data of the study"):
        lrsearch.recover(STUDY, model=zoo.model(), calibration=zoo.data(1), score=zoo.data(9), train=zoo.data(3), index=0)


def test_a_study_without_training_data_is_refused(write, study, capsys):
    del study["data"]["train"]
    path = write()
    main(["search", path])
    capsys.readouterr()
    assert main(["recover", path]) == 2
    assert re.fullmatch(r"lrsearch: data\.train: a recovery needs training data; .*\n", capsys.readouterr().err)


def test_the_study_keeps_no_trace_of_how_it_is_recovered(path):
    assert "recover" not in json.loads((STUDY / "study.json").read_text())["config"]
