"""The floors of the package: a module imports from its own floor or from those below it."""

import ast
from pathlib import Path

import pytest

import lrsearch

ROOT = Path(lrsearch.__file__).parent
FLOORS = [
    "version", "errors", "spec", "task", "compress", "measure", "search", "profile", "deploy",
    "latency", "train", "study", "report", "workflows",
]
TOP = {"__init__", "__main__", "cli", "examples", "extend"}
FILES = sorted(ROOT.rglob("*.py"))


def floor(part: str) -> int:
    assert part in FLOORS or part in TOP, f"{part} is on no floor"
    return FLOORS.index(part) if part in FLOORS else len(FLOORS)


def imports(path: Path) -> set[str]:
    """Dotted names of all that ``path`` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("lrsearch.")}
    above = {part for part in inside if floor(part) > floor(part_of(path))}
    assert not above


def users(package: str) -> set[str]:
    return {part_of(path) for path in FILES if any(name.split(".")[0] == package for name in imports(path))}


def test_optuna_is_used_in_search_alone():
    assert users("optuna") == {"search", "study"}


def test_spec_and_errors_know_no_torch():
    assert not users("torch") & {"spec", "errors"}
    assert "compress" in users("torch")
