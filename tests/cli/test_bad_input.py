"""A corpus of bad input: each is one line on stderr, exit code 2, and nothing is left behind."""

from pathlib import Path

import pytest
import yaml

from lrsearch.cli.main import main

CORPUS = yaml.safe_load((Path(__file__).parents[1] / "data" / "bad_studies.yaml").read_text(encoding="utf-8"))
RIGHT = """
name: right
budget: {params: 0.5}
model: {timm: resnet18}
data: {calibration: {folder: a}, score: {folder: b}}
"""
CASES = [
    *(((RIGHT, ["search", "FILE", "--set", text]), place, rule) for text, place, rule in CORPUS["overrides"]),
    *(((RIGHT, ["search", "FILE", "--set", start + part * times + end]), place, rule)
      for start, part, times, end, place, rule in CORPUS["repeated"]),
    *(((text, ["search", "FILE"]), place, rule) for text, place, rule in CORPUS["files"]),
    *(((RIGHT, command), place, rule) for command, place, rule in CORPUS["commands"]),
]  # fmt: skip


def test_the_corpus_is_large():
    assert len(CASES) >= 150
    assert len({repr(given) for given, _, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("given", "place", "rule"), CASES, ids=[repr(command)[:80] for (_, command), _, _ in CASES])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, given, place, rule):
    text, command = given
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study.yaml"
    study.write_text(text, encoding="utf-8")
    try:
        code = main(["study.yaml" if word == "FILE" else word for word in command])
    except SystemExit as ended:  # argparse's
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("lrsearch")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert all(c.isprintable() for c in err[:-1])
    assert len(err) < 900
    assert place in err
    assert rule in err
    assert list(tmp_path.iterdir()) == [study]
    assert study.read_text(encoding="utf-8") == text


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("# " + "x" * 2**20)
    assert main(["search", "study.yaml"]) == 2
    assert "must be a file of at most 1048576 bytes" in capsys.readouterr().err
