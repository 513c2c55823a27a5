"""Every family of timm under a mixed plan: does what lrsearch makes of it compute, count, save, load and export as it should?

    python studies/benchmarks/timm_families.py [FAMILY …] [--fresh] [--most 30] [--limit 300] [--out FILE]

A family is a module of timm. Of each, the smallest member (but timm's own ``test_*``) is built with random weights for the
smallest input it takes, and compressed: each compressible layer gets the plan used longest ago, of all formats x all
patterns, that it does not refuse. Layers of up to 256 columns are fitted with the identity as Gram matrix, wider ones get
random factors and an S of the largest values: the quality of fits is not the subject. BatchNorm statistics are those of
noise, and parameters that start near zero (biases, LayerScale, last gammas) are drawn at random, so that every layer moves
the output. Each family runs in a process of its own; families in the output file are run again only with ``--fresh``; one
whose members all have more than ``--most`` million parameters is skipped.

Columns: family, model, input, params, layers (compressed + refused), the checks, CPU seconds, refused, remarks. The checks:
    forward   every compressed layer equals its effective-weight form on its own input (relative 1e-5), and so does the
              model in float64 (1e-6), because rounding grows without bound in some random networks
    base      the dense model is bit-identical afterwards
    cost      predicted params and weight_bytes are those of the compressed model, predicted macs those torch counts on it
    artifact  saved, then loaded on a base built anew with other weights: bit-identical output
    onnx      exported (dynamo) and run by onnxruntime: the same output (1e-3)
A check is ok, FAIL, - (not reached) or, for onnx, base: so does the dense model that holds the same weights (timm's or torch's limit).
"""

import argparse
import copy
import json
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import timm
import torch
from torch import Tensor, nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.formats.base import balanced, low_rank
from lrsearch.compress.inventory import inventory
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.sparsify import select
from lrsearch.compress.storage import Storage
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan

CHECKS = dict.fromkeys(("forward", "cost", "artifact", "base", "onnx"), 8)
COLUMNS = {"family": 25, "model": 34, "input": 7, "params": 8, "layers": 7, **CHECKS, "seconds": 7, "refused": 0, "remarks": 0}
CYCLE = [(form, kind) for kind in ("", "unstructured", "2:4", "4:8", "block4x1", "column", "row") for form in ("dense", *FORMATS)][1:]
SIZES = ((64, 96), *((n, n) for n in (64, 96, 128, 192, 224, 256, 384, 512)))
FITTED, RATIO, MEMORY = 256, 0.2, 6 * 2**30


def smallest(family: str) -> tuple[int, str]:
    with torch.device("meta"):
        models = {n: timm.create_model(n) for n in timm.list_models(module=family, exclude_filters="test_*")}
    return min((sum(p.numel() for p in model.parameters()), name) for name, model in models.items())


def build(name: str) -> tuple[Callable[[], nn.Module], Tensor]:
    """How to build the model for the smallest input it takes, and that input."""
    torch.manual_seed(0)
    for size in SIZES:
        for args in ({"img_size": size}, {}):
            try:
                x = torch.randn(2, 3, *size)
                output(timm.create_model(name, **args).eval(), x)
                return lambda args=args: timm.create_model(name, **args).eval(), x
            except Exception as error:
                last = error
    raise last


@torch.no_grad()
def awaken(model: nn.Module, x: Tensor) -> None:
    for p in model.parameters():
        if float(p.abs().max()) < 0.02:
            p.normal_(0, 0.2)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats:
            m.reset_running_stats()
            m.train().momentum = None
    model(torch.randn(8, *x.shape[1:]))
    model.eval()


def mixed(layers: tuple[LayerSpec, ...]) -> Plan:
    waiting, plans = list(CYCLE), {}
    for layer in layers:
        for choice in waiting:
            form, kind = FORMATS.get(choice[0]), choice[1]
            rank = form.rank(layer, RATIO) if form and not form.refusal(layer) else ()
            if form and not rank:
                continue
            plan = LayerPlan(choice[0], rank, pattern(kind).density or 0.5 if kind else 0.0, kind or "unstructured")
            if not plan.refusal(layer) and (not kind or 0 < plan.kept(layer) < layer.numel):
                plans[layer.name] = plan
                waiting.append(waiting.pop(waiting.index(choice)))
                break
        else:
            raise ValueError(f"no plan suits {layer}")
    return Plan(plans)


def fitted(weight: Tensor, layer: LayerSpec, plan: LayerPlan) -> Decomposition:
    w = to_matrix(weight.detach(), layer.groups)
    if layer.columns <= FITTED:
        return FitProblem(layer, w, torch.eye(layer.columns).repeat(layer.groups, 1, 1)).fit(plan)
    factors, mask = [], select(w, layer, pattern(plan.pattern), plan.kept(layer))
    if plan.rank:
        factors = balanced([torch.randn(shape) for shape in FORMATS[plan.format].shapes(layer, plan.rank)])
        scale = w.norm() / low_rank(plan.format).compose(layer, factors).norm()
        factors = [f * scale ** (1 / len(factors)) for f in factors]
    return Decomposition(layer, plan, tuple(factors), w * mask, mask)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = model(x)
    return torch.cat([t.flatten() for t in (y if isinstance(y, tuple | list) else [y])])


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30)) if bool((a - b).isfinite().all()) else float("inf")


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error} {error.__cause__ or ''}".split())[:300]


class Examination:
    """One family: the compressed model, and the checks on it, each of which returns what is wrong."""

    def __init__(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        self.make, self.x, self.base = make, x, make()
        awaken(self.base, x)
        self.before, self.dense = copy.deepcopy(self.state()), output(self.base, x)
        stock = inventory(self.base, x)
        self.layers, self.refused, self.plan = stock.layers, Counter(stock.refused.values()), mixed(stock.layers)
        self.fits = {s.name: fitted(self.base.get_parameter(f"{s.name}.weight"), s, self.plan[s.name]) for s in self.layers}
        self.small, self.effective = compress(self.base, self.layers, self.plan, self.fits), copy.deepcopy(self.base)
        write_effective(self.effective, self.fits)

    def state(self) -> dict[str, Tensor]:
        return {n: t.detach() for n, t in (*self.base.named_parameters(), *self.base.named_buffers())}

    def forward(self) -> str:
        exact, worst = copy.deepcopy(self.base).double(), dict.fromkeys(self.fits, float("inf"))
        doubles = {n: replace(f, factors=tuple(t.double() for t in f.factors), sparse=f.sparse.double()) for n, f in self.fits.items()}
        write_effective(exact, doubles)

        def compare(module: CompressedLayer, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            name, gap = module.spec.name, far(y, self.effective.get_submodule(module.spec.name)(*inputs))
            worst[name] = gap if worst[name] == float("inf") else max(worst[name], gap)

        hooks = [self.small.get_submodule(n).register_forward_hook(compare) for n in self.fits]
        output(self.small, self.x)
        for hook in hooks:
            hook.remove()
        moved = far(output(self.effective, self.x), self.dense)
        gap = far(output(copy.deepcopy(self.small).double(), self.x.double()), output(exact, self.x.double()))
        name = max(worst, key=worst.__getitem__)
        said = [f"{name} ({self.plan[name]}) differs by {worst[name]:.1e}"] if worst[name] > 1e-5 else []
        said += [f"the model differs by {gap:.1e}"] if gap > 1e-6 else []
        return ", ".join(said + ([f"blind, compression moves the output by {moved:.1e} alone"] if moved < 0.01 else []))

    def cost(self) -> str:
        predicted, params = cost_model(self.base, self.layers, self.x)(self.plan).to_dict(), sum(p.numel() for p in self.small.parameters())
        with tempfile.TemporaryDirectory() as folder:
            artifact.save(self.small, self.plan, Path(folder) / "model", {}, Storage(self.layers))
            size = (Path(folder) / "model" / artifact.WEIGHTS).stat().st_size
        found = {"params": params, "weight_bytes": size, "macs": dense_macs(self.small, self.x)}
        return ", ".join(f"{k} {predicted[k]} predicted, {n} found" for k, n in found.items() if predicted[k] != n)

    def artifact(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            artifact.save(self.small, self.plan, Path(folder) / "model", {})
            torch.manual_seed(1)
            again = output(artifact.load(Path(folder) / "model", self.make()), self.x)
        saved = output(self.small, self.x)
        return "" if torch.equal(again, saved) else f"the loaded model differs by {far(again, saved):.1e}"

    def untouched(self) -> str:
        changed = [n for n, t in self.state().items() if n not in self.before or not torch.equal(t, self.before[n])]
        same = torch.equal(output(self.base, self.x), self.dense) and not changed
        return "" if same else f"the dense model changed: {changed or 'its output'}"

    def onnx(self) -> str:
        said = self.export(self.small)
        return f"base, {own} without lrsearch" if said and (own := self.export(self.effective)) else said

    def export(self, model: nn.Module) -> str:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        try:
            proto = torch.onnx.export(model, (self.x,), dynamo=True, verbose=False).model_proto
            session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            y = torch.cat([torch.from_numpy(t).flatten() for t in session.run(None, {session.get_inputs()[0].name: self.x.numpy()})])
        except Exception as error:
            return brief(error)
        return "" if (gap := far(y, output(model, self.x))) <= 1e-3 else f"differs by {gap:.1e}"


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
    show(layers=f"{len(e.fits)}+{e.refused.total()}", refused="; ".join(f"{n} x {reason}" for reason, n in e.refused.items()))
    for column, test in zip(CHECKS, (e.forward, e.cost, e.artifact, e.untouched, e.onnx), strict=True):
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
