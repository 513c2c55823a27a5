"""The floors of the package: a module imports from its own part or from the floors below it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import lrsearch

ROOT = Path(lrsearch.__file__).parent
FLOORS = [  # from the ground up: parts (folders, files) side by side on a floor do not know each other
    {"version", "errors"}, {"spec"}, {"task"}, {"compress"}, {"measure", "search"}, {"profile", "deploy"}, {"latency", "train"}, {"study"},
    {"report"}, {"workflows"}, {"__init__"}, {"cli", "examples", "extend"}, {"__main__"},
]  # fmt: skip
ONLY_IN = {"optuna": {"search", "study"}}  # package → the parts that may import it
NEVER_IN = {"torch": {"errors", "spec"}}  # package → the parts that may not
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def module_of(path: Path) -> str:
    return ".".join(("lrsearch", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def part_of(module: str) -> str:
    """``lrsearch.spec.plan`` → ``spec``; the package itself is ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def _for_types(node: ast.AST) -> bool:
    """Whether ``node`` is ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def names(tree: ast.AST) -> set[str]:
    """Dotted names of all that is imported in ``tree``, also inside of functions; ``a.b`` for ``from a import b``."""
    hints = {id(n) for block in ast.walk(tree) if _for_types(block) for n in ast.walk(block)}
    nodes = [n for n in ast.walk(tree) if id(n) not in hints]
    assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level], "a relative import"
    whole = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return whole | {f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}


IMPORTED = {module_of(path): names(ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))}


def inside(module: str) -> set[str]:
    """Modules of the package that ``module`` imports, in functions too."""
    found = {n if n in IMPORTED else n.rpartition(".")[0] for n in IMPORTED[module] if n.startswith("lrsearch")}
    return found & IMPORTED.keys() - {"lrsearch" if "lrsearch.__version__" in IMPORTED[module] else ""}


def users(package: str) -> set[str]:
    return {part_of(module) for module, found in IMPORTED.items() if any(n.split(".")[0] == package for n in found)}


def test_every_part_is_on_a_floor_and_every_floor_has_its_parts():
    assert {part_of(module) for module in IMPORTED} == set(FLOOR)


def test_imports_point_down():
    pairs = {(module, other) for module in IMPORTED for other in inside(module) if part_of(module) != part_of(other)}
    assert len(pairs) > 100
    assert {(module, other) for module, other in pairs if FLOOR[part_of(module)] <= FLOOR[part_of(other)]} == set()


def test_no_modules_import_each_other_in_a_circle():
    order = list(TopologicalSorter({module: inside(module) for module in IMPORTED}).static_order())
    assert order.index("lrsearch.errors") < order.index("lrsearch.cli.main")


def test_a_package_is_used_only_where_it_may_be():
    assert {package: users(package) for package in ONLY_IN} == ONLY_IN
    assert {package: users(package) & parts for package, parts in NEVER_IN.items()} == {package: set() for package in NEVER_IN}
    assert all(users(package) for package in NEVER_IN)


def test_no_two_test_files_have_one_name():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest imports one of them alone"
