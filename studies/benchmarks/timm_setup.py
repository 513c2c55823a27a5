"""A timm model of random weights, a plan for each of its layers, and what is compared of two models."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from lrsearch.compress.fit import Decomposition, FitProblem
from lrsearch.compress.formats.base import balanced, low_rank
from lrsearch.compress.matricize import to_matrix
from lrsearch.compress.sparsify import select
from lrsearch.spec.formats import FORMATS
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.pattern import pattern
from lrsearch.spec.plan import LayerPlan, Plan

CYCLE = [(form, kind) for kind in ("", "unstructured", "2:4", "4:8", "block4x1", "column", "row") for form in ("dense", *FORMATS)][1:]
SIZES = ((64, 96), *((n, n) for n in (64, 96, 128, 192, 224, 256, 384, 512)))
FITTED, RATIO = 256, 0.2


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
    w = to_matrix(weight.detach(), layer)
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
