"""What README and docs say is typed is what the parser takes, and what they call is there; the commands stay what CI runs."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import lrsearch
from lrsearch.cli.guide import EXAMPLES
from lrsearch.cli.parser import parser
from lrsearch.report import frame
from lrsearch.report.choices import KNEE
from lrsearch.report.figure import STYLES
from lrsearch.spec.cost import Cost, measured

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\s|`)(?:\.venv/bin/)?(lrsearch [a-z].*)")


def blocks(language: str) -> list[tuple[str, str]]:
    return [(path.name, text) for path in DOCUMENTS for kind, text in BLOCK.findall(path.read_text()) if kind == language]


def commands() -> list[str]:
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    shown = [found[1] for line in lines if (found := COMMAND.search(line))]
    return [*dict.fromkeys([*shown, *(line for lines in EXAMPLES.values() for line in lines)])]


def test_there_are_commands_and_code():
    assert len(commands()) > 20
    assert len(blocks("python")) >= 3


@pytest.mark.parametrize("command", commands())
def test_the_parser_takes_every_command(command):
    words = shlex.split(command, comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in ("&", "&&", ">")), None)]
    assert parser().parse_args([word.replace("…", "x") for word in words[1:]]).command


@pytest.mark.parametrize(("name", "code"), blocks("python"))
def test_python_blocks_call_what_there_is(name, code):
    used = re.findall(r"lrsearch\.([A-Za-z]\w*)", ast.unparse(ast.parse(code)))
    assert not [word for word in used if word not in lrsearch.__all__]


def test_the_readme_is_short_and_has_the_commands_that_ci_runs():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    ci = (ROOT / ".ci" / "run").read_text()
    for wanted in re.findall(r"command_of '([^']+)'", ci):
        assert wanted in text


def test_the_glossary_has_all_that_tables_and_figures_name():
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    whole = Cost(1, 1, 1, 1, 1.0)
    columns = [*frame._columns(whole), "measured_ms", "measured_ms_ratio", "verified"]
    words = [c for c in columns if c.removesuffix("_ratio") not in measured(whole)] + list(measured(whole))
    assert not [word for word in [*words, *STYLES, KNEE, "drop", "damage", "hypervolume"] if word not in glossary]


def test_links_lead_to_files():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


@pytest.mark.slow
def test_the_manual_is_built_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
