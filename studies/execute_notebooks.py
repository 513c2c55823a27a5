"""Execute the notebooks, each in a scratch folder, and write them with their outputs.

    python studies/execute_notebooks.py [NAME ...]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
LARGEST = 200_000  # characters of a notebook


def execute(path: Path) -> str:
    """Execute ``path`` and write its outputs into it; returns how long that took."""
    notebook, began, before = nbformat.read(path, as_version=4), time.monotonic(), worked()
    with tempfile.TemporaryDirectory() as scratch:
        where = {"metadata": {"path": scratch}}
        NotebookClient(notebook, timeout=None, resources=where, record_timing=False, coalesce_streams=True).execute()
        text = nbformat.writes(notebook)
        for private in (scratch, str(Path.home()), sys.prefix, str(HERE.parent)):
            assert private not in text, f"{path.name} shows {private}: …{text[max(text.find(private) - 300, 0) :][:600]}…"
    assert len(text) <= LARGEST, f"{path.name} would have {len(text):,} characters"
    path.write_text(text + "\n")
    return f"{path.stem}: {time.monotonic() - began:.0f} s, {worked() - before:.0f} s of them at work"


def worked() -> float:
    """Seconds of processor time of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            print(execute(path), flush=True)
