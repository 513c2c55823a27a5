import json

import pandas as pd
import pytest
import torch

import lrsearch
from lrsearch.cli import search as cli
from lrsearch.cli.main import main
from lrsearch.cli.parser import listed, parser


def trials(capsys) -> int:
    """How many plans the last run says were tried."""
    return int(capsys.readouterr().out.split(" plans tried")[0].split()[-1])


def test_search_leaves_the_front_and_its_models(folder, write, capsys):
    assert main(["search", write()]) == 0
    out, err = capsys.readouterr()
    run = folder / "runs" / "tiny"
    assert {"front.csv", "front.parquet", "report.html", "study.db", "search.log"} <= {p.name for p in run.iterdir()}
    front = pd.read_csv(run / "front.csv", index_col="index")
    pd.testing.assert_frame_equal(front, pd.read_parquet(run / "front.parquet"), check_names=False)
    assert (front.params_ratio <= 0.7).all()
    assert err == ""
    assert "Front of tiny" in out
    assert all(f"{r:.1%}" in out for r in front.params_ratio)
    assert all(f"{r:.1%}" in (run / "search.log").read_text() for r in front.params_ratio.tail(1))
    for model in front.model:
        assert json.loads((run / model / "plan.json").read_text())["model"]["call"] == "zoo:model"


def test_saved_models_load_with_the_base_of_their_study_file(folder, write):
    assert main(["search", write(model={"call": "zoo:model", "args": {"bias": 5.0}})]) == 0
    row = pd.read_csv("runs/tiny/front.csv").iloc[0]
    import zoo

    model = lrsearch.load(f"runs/tiny/{row.model}", zoo.model(5.0))
    x, y = zoo.data(2)
    with torch.no_grad():
        assert (model(x).argmax(1) == y).double().mean() == pytest.approx(row.metric)


def test_the_same_command_again_goes_on(folder, write, capsys):
    path = write()
    main(["search", path])
    first = trials(capsys)
    front = pd.read_csv("runs/tiny/front.csv")
    assert main(["search", path]) == 0
    assert trials(capsys) == first
    pd.testing.assert_frame_equal(pd.read_csv("runs/tiny/front.csv"), front)
    assert main(["search", path, "--trials", "4"]) == 0
    assert trials(capsys) == first + 2


def test_options_lie_over_the_file(folder, write, monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "search", lambda config, args: seen.update(config=config, out=args.out) or 0)
    arguments = ["--trials", "7", "--timeout", "9.5", "--device", "cuda:1", "--out", "elsewhere"]
    overrides = ["search.seed=3", "budget={macs: 0.9}", "proxy.finetune.steps=12", "search.trials=5"]
    assert main(["search", write(), *arguments, *(a for o in overrides for a in ("--set", o))]) == 0
    config = seen["config"]
    assert str(seen["out"]) == "elsewhere"
    assert (config.search.trials, config.search.timeout, config.search.seed, config.search.lowest) == (7, 9.5, 3, 0.2)
    assert (config.device, config.budget, config.proxy.finetune.steps) == ("cuda:1", {"macs": 0.9}, 12)


def test_an_override_keeps_what_stands_beside_an_empty_key(folder, write, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "search", lambda config, args: seen.append(config) or 0)
    assert main(["search", write(proxy={"batch": 50, "finetune": None}), "--set", "proxy.finetune.steps=3"]) == 0
    assert (seen[0].proxy.batch, seen[0].proxy.finetune.steps) == (50, 3)


def test_out_is_where_the_study_goes(folder, write):
    assert main(["search", write(), "--out", "b/c"]) == 0
    assert (folder / "b" / "c" / "front.csv").exists()
    assert not (folder / "runs").exists()


def test_a_metric_of_the_users(folder, write):
    assert main(["search", write(proxy={"metric": "zoo:margin"}, objectives=["metric", "params"])]) == 0
    assert pd.read_csv("runs/tiny/front.csv").metric.max() > 1


def test_layers_lists_what_can_be_compressed_and_what_not(folder, write, capsys):
    (folder / "zoo2.py").write_text(
        "from torch import nn\n"
        "def model():\n    return nn.Sequential(nn.LayerNorm((3, 8)), nn.Flatten(), nn.Linear(24, 3))\n"
        "def data():\n    import torch\n    return torch.randn(4, 3, 8), torch.zeros(4).long()\n"
    )
    path = write(model={"call": "zoo2:model"}, data={"calibration": {"call": "zoo2:data"}, "score": {"call": "zoo2:data"}})
    assert main(["layers", path]) == 0
    out = capsys.readouterr().out
    assert "1 layers can be compressed" in out
    assert "3×24" in out
    assert "left dense: 0.weight (19.5% of the parameters): LayerNorm computes with it itself" in out
    assert not (folder / "runs").exists()


def test_an_interruption_is_said_in_one_line(folder, write, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.workflow, "search", interrupt)
    assert main(["search", write()]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lrsearch {lrsearch.__version__}\n"


def test_shells_complete_what_follows_a_command_and_files():
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(listed(), "bash")
    assert "--pick" in script
    assert "_shtab_lrsearch_search_pos_0_COMPGEN=_shtab_compgen_files" in script
    assert "\n    export " not in parser().format_help()  # grouped instead
