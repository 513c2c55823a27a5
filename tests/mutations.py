"""Mutation checks: which small faults in the code below do its own tests not see?

``python tests/mutations.py`` changes one expression at a time in a copy of the repository, runs the tests of that
file and lists the mutants that survived. By hand: ``--area knapsack --count 40 --seed 3``.
The operators are the usual ones of mutation testing (Offutt et al. 1996): relations, arithmetic, logic, constants,
returned values, dropped statements.
"""

import argparse
import ast
import copy
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
AREAS = {  # area → file in lrsearch/ → tests that should see a fault in it
    "knapsack": {
        "search/knapsack.py": ["tests/search/test_knapsack.py"], "search/one_limit.py": ["tests/search/test_knapsack.py"],
        "search/several_limits.py": ["tests/search/test_knapsack.py"], "search/exchanges.py": ["tests/search/test_knapsack.py"],
    },
    "halving": {
        "search/rungs.py": ["tests/search/test_rungs.py"],
        "spec/front.py": ["tests/spec/test_front.py"],
        "search/halving.py": ["tests/study/test_halving.py"],
    },
    "trial store": {
        "study/trials.py": ["tests/study/test_trials.py"],
        "search/records.py": ["tests/search/test_records.py"],
    },
}
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}  # fmt: skip
OPPOSITES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "argmin": "argmax", "argmax": "argmin",
}  # fmt: skip
PATIENCE = 5, 20  # times as long as unchanged, and so many seconds more: a mutant that takes longer has been seen


@dataclass(frozen=True)
class Mutant:
    """One changed file."""

    file: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"lrsearch/{self.file}:{self.line}: {self.before}  ->  {self.after}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of ``node``."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            yield ast.Compare(node.left, [COMPARED[type(op)]()], node.comparators)
        case ast.BinOp(left, op, right) if type(op) in COMPUTED:
            yield ast.BinOp(left, COMPUTED[type(op)](), right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.If() | ast.While():
            yield type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Name(name) if name in OPPOSITES:
            yield ast.Name(OPPOSITES[name], ast.Load())
        case ast.Attribute(value, name) if name in OPPOSITES:
            yield ast.Attribute(value, OPPOSITES[name], ast.Load())
        case ast.Return(value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call()) | ast.AugAssign():
            yield ast.Pass()


def places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """All nodes below ``parent``, with where each hangs; neither annotations nor decorators."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST):
                yield parent, field, index, node
                yield from places(node)


def text_of(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(node)).partition("\n")[0]


def mutants(file: str) -> list[Mutant]:
    """All mutants of a file of the package, in the order of the file."""
    tree, found = ast.parse((ROOT / "lrsearch" / file).read_text()), []
    for parent, field, index, node in places(tree):
        for other in changes(node):
            replace(parent, field, index, other)
            source = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
            replace(parent, field, index, node)
            found.append(Mutant(file, node.lineno, text_of(copy.deepcopy(node)), text_of(copy.deepcopy(other)), source))
    return found


def replace(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def import_libraries() -> None:
    """What the package needs, once for all mutants; not the package, of which each mutant has its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(1, str(ROOT))
    importlib.import_module("lrsearch.cli.main")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lrsearch"]:
        del sys.modules[name]


def run_tests(folder: Path, tests: list[str]) -> None:
    """Ends the process with pytest's exit code; the package imported is the one in ``folder``."""
    import pytest

    os.chdir(folder)
    os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
    sys.dont_write_bytecode = True
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # all is imported already
    os._exit(int(pytest.main([*options, *tests])))


def exit_code(folder: Path, tests: list[str], seconds: float | None = None) -> int | None:
    """Of pytest; None where it took longer than ``seconds``."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--area", choices=AREAS, action="append", help="may be given again; all areas if not given")
    parser.add_argument("--count", type=int, default=12, help="mutants of each area, as equal as can be between its files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=1.0, help="share of mutants to be seen; else exit code 1 (some change nothing)")
    options = parser.parse_args()
    import_libraries()
    survivors, total = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(
            ROOT, Path(scratch) / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__", "runs"), symlinks=True
        )
        for area in options.area or AREAS:
            for file, tests in AREAS[area].items():
                start = time.monotonic()
                if exit_code(folder, tests) != 0:
                    sys.exit(f"{' '.join(tests)}: must pass before anything is changed")
                most = PATIENCE[0] * (time.monotonic() - start) + PATIENCE[1]
                everything = mutants(file)
                count = min(len(everything), -(-options.count // len(AREAS[area])))
                chosen = random.Random(f"{options.seed} {file}").sample(everything, count)
                target = folder / "lrsearch" / file
                original = target.read_text()
                for mutant in sorted(chosen, key=lambda m: m.line):
                    start = time.monotonic()
                    target.write_text(mutant.source)
                    seen = exit_code(folder, tests, most) != 0
                    print(f"{'seen' if seen else 'SURVIVED':8} {time.monotonic() - start:5.1f} s  {mutant}", flush=True)
                    survivors += [] if seen else [mutant]
                    total += 1
                target.write_text(original)
                print(f"{area}, lrsearch/{file}: {count} of {len(everything)} mutants", flush=True)
    print(f"{total - len(survivors)} of {total} seen, {len(survivors)} survived", *survivors, sep="\n")
    return len(survivors) > (1 - options.least) * total


if __name__ == "__main__":
    sys.exit(main())
