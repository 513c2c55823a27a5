"""The notebooks run, each in a folder of its own."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "studies").glob("*.ipynb"))


def test_all_are_there_and_none_shows_an_error():
    assert {p.stem for p in NOTEBOOKS} == {"latency_target", "memory_budget", "pareto_tradeoffs", "your_own_model"}
    for path in NOTEBOOKS:
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
        assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))  # executed from top to bottom, all of it
        assert cells[-1]["outputs"]
        assert len(path.read_text()) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
