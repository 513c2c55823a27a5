"""What is imported before there is something to compute; counted, not timed."""

import subprocess
import sys

import pytest

import lrsearch

HEAVY = {"torch", "timm", "torchvision", "optuna", "pandas", "plotly", "scipy", "sklearn", "rich", "numpy", "sqlalchemy"}
TELL = "import sys; print(','.join(sorted({m.split('.')[0] for m in sys.modules})), file=sys.stderr)"


def imported(code: str, *arguments: str) -> set[str]:
    """Packages that a fresh process has imported when ``code``, or the command line of ``arguments``, is done."""
    if arguments:
        code = f"from lrsearch.cli.main import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{TELL}"], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split(","))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["search", "--help"], ["search", "digits", "--set", "search.trials=0"], ["search", "nowhere"]],
    ids=" ".join,
)
def test_help_and_refusals_import_nothing_heavy(arguments):
    found = imported("", *arguments)
    assert "lrsearch" in found
    assert not found & HEAVY


def test_importing_lrsearch_imports_the_standard_library_alone():
    found = imported("import lrsearch; dir(lrsearch)")
    assert not found & (HEAVY | {"pydantic", "yaml"})


def test_settings_from_python_need_no_torch():
    assert not imported("import lrsearch; lrsearch.Budget(params=0.3); lrsearch.Space(); lrsearch.SearchConfig(trials=3)") & HEAVY


@pytest.mark.slow
def test_every_public_name_is_there_and_stays_what_it_is():
    code = (
        "import lrsearch, types, importlib\n"
        "for name in lrsearch.__all__:\n    getattr(lrsearch, name)\n"
        "for below in ('search.rungs', 'report.frame', 'profile.sweep', 'latency.table'):\n"
        "    importlib.import_module(f'lrsearch.{below}')\n"
        "for name in ('search', 'report', 'profile', 'ask', 'layers', 'fidelity', 'load', 'export'):\n"
        "    assert isinstance(getattr(lrsearch, name), types.FunctionType), name\n"
        "assert lrsearch.latency.measure is lrsearch.profile\n"
        "assert set(lrsearch.__all__) <= set(dir(lrsearch))\n"
        "from lrsearch import *\n"
    )
    assert "torch" in imported(code)


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        lrsearch.serach  # noqa: B018
