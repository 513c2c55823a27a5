"""Every family of timm under a mixed plan: does what lrsearch makes of it compute, count, save, load and export as it should?

    python studies/benchmarks/timm_families.py [FAMILY …] [--fresh] [--most 30] [--limit 300] [--out FILE]

A family is a module of timm. Of each, the smallest member (but timm's own ``test_*``) is built with random weights for the
smallest input it takes, and compressed: each compressible layer gets the plan used longest ago, of all formats x all
patterns, that it does not refuse. Layers of up to 256 columns are fitted with the identity as Gram matrix, wider ones get
random factors and an S of the largest values: the quality of fits is not the subject. BatchNorm statistics are those of
noise, and parameters that start near zero (biases, LayerScale, last gammas) are drawn at random, so that every layer moves
the output. Each family runs in a process of its own; families in the output file are run again only with ``--fresh``; one
whose members all have more than ``--most`` million parameters is skipped.

Columns: family, model, input, params, layers (compressed + refused), how many of them are fed by one layer alone, the checks, CPU
seconds, refused, remarks. The checks:
    forward   every compressed layer equals its effective-weight form on its own input (relative 1e-5), and so does the
              model in float64 (1e-6), because rounding grows without bound in some random networks; what `prepare` does to
              the dense model alone does not move its output (float64, 1e-6)
    base      the dense model is bit-identical afterwards
    cost      predicted params and weight_bytes are those of the compressed model, predicted macs those torch counts on it
    artifact  saved, then loaded on a base built anew with other weights: bit-identical output
    deploy    deployed, with half of the columns of fed layers dropped and so half of what feeds them: the same output (float64, 1e-6)
    onnx      exported (dynamo) and run by onnxruntime: the same output (1e-3)
A check is ok, FAIL, - (not reached) or, for onnx, base: so does the dense model that holds the same weights (timm's or torch's limit).
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import onnxruntime
import timm
import torch
from timm_checks import Examination
from timm_setup import brief, build, smallest

CHECKS = dict.fromkeys(("forward", "cost", "artifact", "base", "deploy", "onnx"), 8)
COLUMNS = {"family": 25, "model": 34, "input": 7, "params": 8, "layers": 7, "fed": 3, **CHECKS, "seconds": 7, "refused": 0, "remarks": 0}
MEMORY = 6 * 2**30


def blank(family: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "-") | {"family": family, "refused": "", "remarks": ""}


def work(family: str, most: float) -> None:
    """Print the family's record as it fills; the last one ends with ``done``."""
    record = blank(family)

    def show(**news: str) -> None:
        record.update(news)
        print(json.dumps(record), flush=True)

    params, name = smallest(family)
    show(model=name, params=f"{params / 1e6:.2f} M")
    if params > most * 1e6:
        return show(remarks=f"skipped: no member has {most:g} M parameters or fewer", done="yes")
    make, x = build(name)
    show(input="x".join(map(str, x.shape[2:])))
    e = Examination(make, x)
    refused = "; ".join(f"{n} x {reason}" for reason, n in e.refused.items())
    show(layers=f"{len(e.fits)}+{e.refused.total()}", fed=f"{len(e.fed)}", refused=refused)
    for column, test in zip(CHECKS, (e.forward, e.cost, e.artifact, e.untouched, e.deploy, e.onnx), strict=True):
        try:
            said = test()
        except Exception as error:
            said = brief(error)
        status = "base" if said.startswith("base,") else "FAIL" if said else "ok"
        show(**{column: status}, remarks=record["remarks"] + f"{column}: {said}; " * bool(said))
    show(done="yes")


def run(family: str, most: float, limit: int) -> str:
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, __file__, family, "--most", str(most), "--limit", str(limit), "--worker"]
    worker = subprocess.run(command, capture_output=True, text=True)
    shown = [line for line in worker.stdout.splitlines() if line.startswith('{"family"')]
    record = json.loads(shown[-1]) if shown else blank(family)
    record["seconds"] = f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started:.0f}"
    if "done" not in record:
        why = "took too long" if worker.returncode in (-signal.SIGXCPU, -signal.SIGALRM) else f"exit code {worker.returncode}"
        record["remarks"] += f"stopped, {why}: {' '.join(worker.stderr.split())[-300:]}"
    return " | ".join(record[c].replace("|", "/").ljust(width) for c, width in COLUMNS.items()).rstrip()


def summary(lines: list[str]) -> str:
    records = [dict(zip(COLUMNS, (v.strip() for v in line.split("|")), strict=True)) for line in lines]
    tried = [r for r in records if not r["remarks"].startswith("skipped")]
    whole = sum(all(r[c] == "ok" for c in CHECKS) for r in tried)
    said = [f"{len(records)} families, {len(records) - len(tried)} skipped, all checks ok in {whole} of the other {len(tried)}"]
    said += [f"{c}: {', '.join(f'{n} {k}' for k, n in Counter(r[c] for r in tried).most_common())}" for c in CHECKS]
    reasons: Counter[str] = Counter()
    for part in (p for r in tried for p in r["refused"].split("; ") if p):
        reasons[part.split(" x ", 1)[1]] += int(part.split(" x ", 1)[0])
    said += [f"refused: {n} layers, {reason}" for reason, n in reasons.most_common()]
    return "".join(f"# {line}\n" for line in (*said, *(f"{r['family']}: {r['remarks']}" for r in records if r["remarks"])))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--most", type=float, default=30)
    parser.add_argument("--limit", type=int, default=300, help="CPU seconds a family may take")
    parser.add_argument("--out", type=Path, default=Path("studies/results/timm_families.txt"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        signal.alarm(20 * args.limit)
        resource.setrlimit(resource.RLIMIT_CPU, (args.limit, args.limit + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        warnings.simplefilter("ignore")
        return work(args.families[0], args.most)
    families = args.families or timm.list_modules()
    before = args.out.read_text().splitlines() if args.out.exists() else []
    done = {line.split(" |")[0].strip(): line for line in before if not line.startswith("#")}
    done = {family: line for family, line in done.items() if not (args.fresh and family in families)}
    head = f"# torch {torch.__version__}, timm {timm.__version__}, onnxruntime {onnxruntime.__version__}\n# {' | '.join(COLUMNS)}\n"
    args.out.write_text(head + "".join(f"{line}\n" for line in done.values()))
    with args.out.open("a") as file:
        for family in families:
            if family not in done:
                done[family] = run(family, args.most, args.limit)
                print(done[family], file=file, flush=True)
        file.write(summary(list(done.values())))


if __name__ == "__main__":
    main()
