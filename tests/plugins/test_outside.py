"""A format, two patterns, a metric, a backend and a sampler of another package go through a study without an edit inside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.parse import parse
from lrsearch.spec.pattern import pattern
from lrsearch.spec.registry import Registry, load_plugins

HERE = Path(__file__).parent
SEARCH = """
import json, sys
from pathlib import Path
from lrsearch.cli.main import main

assert main(["search", "study.yaml"]) == 0
assert main(["export", "study.yaml", "--index", "0"]) == 0
assert main(["ask", "study.yaml", "--budget", "energy_ratio=0.5"]) == 0
import outsider
Path("told.json").write_text(json.dumps({"asked": outsider.ASKED, "timed": outsider.TIMED}))
"""
NAMED = """
import json, sys
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.parse import parse
from lrsearch.spec.pattern import pattern
from lrsearch.latency.backends import backend

config = StudyConfig(
    budget={"energy_ratio": 0.5}, objectives=("divergence", "energy_uj"), latency={"backend": "eager"}, search={"sampler": "noted"},
    space={"rules": [{"formats": ["outer"], "patterns": ["diagonals"]}]},
)
print(type(FORMATS["outer"]).__name__, type(pattern("diagonals")).__name__, backend("eager").version(), dict(config.budget))
"""


def run(code: str, folder: Path, *path: Path) -> str:
    """What a fresh process writes that runs ``code`` in ``folder``."""
    path = os.pathsep.join([*map(str, path), *(p for p in sys.path if p)])
    where = {**os.environ, "PYTHONPATH": path, "LRSEARCH_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_one_of_each_from_a_study_file_in_a_fresh_process(tmp_path):
    for name in ("outsider.py", "study.yaml"):
        shutil.copy(HERE / name, tmp_path)
    said = run(SEARCH, tmp_path)
    study = tmp_path / "runs" / "outside"

    told = json.loads((tmp_path / "told.json").read_text())
    assert len(set(told["asked"])) == 2, "the sampler proposes each trial that is no control"
    assert "CompressedLayer" in told["timed"], "the backend times the format's own module"

    plans = [json.loads(path.read_text()) for path in (study / "models").glob("*/plan.json")]
    front = [p for p in plans if p["plan"]]
    assert {entry["pattern"] for p in front for entry in p["plan"].values()} >= {"diagonals", "every-other-row"}
    assert {entry["format"] for p in plans for entry in p["plan"].values()} == {"dense", "outer"}
    for p in front:
        cost, dense = p["cost"], p["dense"]
        assert cost["energy_uj"] <= min(0.5, 0.6 * dense["energy_uj"])
        assert cost["energy_uj"] == pytest.approx(4.6e-6 * cost["macs"] + 1.6e-4 * cost["weight_bytes"])

    certificate = json.loads((study / "export" / "certificate.json").read_text())
    checks = {check["name"]: check for check in certificate["checks"]}
    assert {"budget energy_ratio", "budget energy_uj", "energy_uj"} <= checks.keys()
    assert all(checks[name]["passed"] for name in ("budget energy_ratio", "budget energy_uj", "energy_uj", "weight_bytes", "divergence"))
    assert "energy, % of dense" in (study / "report.html").read_text()
    assert "energy_uj 0." in said, "ask shows the metric that was asked for"


def test_one_of_each_from_entry_points_alone(tmp_path):
    shutil.copy(HERE / "outsider.py", tmp_path)
    about = tmp_path / "outsider-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    groups = {
        "formats": "outer = outsider:Outer", "patterns": "diagonals = outsider:Diagonals", "backends": "eager = outsider:Eager",
        "metrics": "energy_uj = outsider:Energy", "samplers": "noted = outsider:Noted",
    }
    (about / "entry_points.txt").write_text("\n".join(f"[lrsearch.{group}]\n{point}\n" for group, point in groups.items()))
    assert run(NAMED, tmp_path, tmp_path).split("\n")[0] == "Outer Diagonals 1 {'energy_ratio': 0.5}"


def test_a_miss_names_the_class_and_the_decorator():
    with pytest.raises(ConfigError, match=r"must be a format; got inner\. One of cp, svd.*subclass lrsearch\.extend\.LowRank.*@lrsearch"):
        FORMATS["inner"]
    with pytest.raises(ValueError, match=r"subclass lrsearch\.extend\.Pattern, decorate it with @lrsearch\.extend\.PATTERNS\.register"):
        pattern("circles")


def test_a_plugin_that_cannot_be_imported_is_one_line():
    with pytest.raises(ConfigError, match=r"^plugins: must name a module that can be imported; got no_such_module"):
        load_plugins(["no_such_module"])


def test_a_class_without_a_name_or_with_a_taken_one_is_refused():
    things: Registry[object] = Registry("thing", "lrsearch.things", base="Thing", register="things", place="things")
    things.register(type("First", (), {"name": "first"}))
    assert list(things) == ["first"]
    with pytest.raises(ValueError, match="'first' is taken"):
        things.register(type("Second", (), {"name": "first"}))
    with pytest.raises(ValueError, match="needs a class attribute name"):
        things.register(type("Third", (), {}))


def test_a_configuration_that_is_only_read_imports_no_plugin(tmp_path, monkeypatch):
    (tmp_path / "unasked.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parse(StudyConfig, {"plugins": ["unasked"]}, "study.json").plugins == ("unasked",)
    assert "unasked" not in sys.modules
