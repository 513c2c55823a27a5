"""The checks of timm_families.py on one model."""

import copy
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from timm_setup import awaken, brief, far, fitted, mixed, output
from torch import Tensor, nn

from lrsearch.compress import artifact
from lrsearch.compress.apply import compress, write_effective
from lrsearch.compress.inventory import inventory
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.prepare import prepare
from lrsearch.compress.storage import Storage
from lrsearch.deploy.channel_flow import feeds
from lrsearch.deploy.deployed import deployed
from lrsearch.measure.count import cost_model, dense_macs
from lrsearch.spec.plan import LayerPlan, Plan

HALF = LayerPlan(density=0.5, pattern="column")


class Examination:
    """One family: the compressed model, and the checks on it, each of which returns what is wrong."""

    def __init__(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        self.make, self.x, self.base = make, x, make()
        awaken(self.base, x)
        self.before, self.dense = copy.deepcopy(self.state()), output(self.base, x)
        self.prepared = prepare(self.base)
        stock = inventory(self.prepared, x)
        self.layers, self.refused, self.plan = stock.layers, Counter(stock.refused.values()), mixed(stock.layers)
        self.fits = {s.name: fitted(self.prepared.get_parameter(f"{s.name}.weight"), s, self.plan[s.name]) for s in self.layers}
        self.small, self.effective = compress(self.prepared, self.layers, self.plan, self.fits), copy.deepcopy(self.prepared)
        write_effective(self.effective, self.fits)
        self.fed = {layer.name for layer in self.layers} & feeds(deployed(self.prepared, x), x).keys()

    def state(self) -> dict[str, Tensor]:
        return {n: t.detach() for n, t in (*self.base.named_parameters(), *self.base.named_buffers())}

    def forward(self) -> str:
        exact, worst = copy.deepcopy(self.prepared).double(), dict.fromkeys(self.fits, float("inf"))
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
        said += [f"preparing alone moves the output by {ready:.1e}"] if (ready := self.preparing()) > 1e-6 else []
        return ", ".join(said + ([f"blind, compression moves the output by {moved:.1e} alone"] if moved < 0.01 else []))

    def preparing(self) -> float:
        if self.prepared is self.base:
            return 0.0
        base = copy.deepcopy(self.base).double()
        return far(output(prepare(base), self.x.double()), output(base, self.x.double()))

    def cost(self) -> str:
        predicted = cost_model(self.prepared, self.layers, self.x)(self.plan).to_dict()
        with tempfile.TemporaryDirectory() as folder:
            artifact.save(self.small, self.plan, Path(folder) / "model", {}, Storage(self.layers))
            size = (Path(folder) / "model" / artifact.WEIGHTS).stat().st_size
        params = sum(p.numel() for p in self.small.parameters())
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

    def deploy(self) -> str:
        plan = Plan({**self.plan.layers, **dict.fromkeys(self.fed, HALF)})
        columns = {s.name: fitted(self.prepared.get_parameter(f"{s.name}.weight"), s, HALF) for s in self.layers if s.name in self.fed}
        small, x = compress(self.prepared, self.layers, plan, {**self.fits, **columns}).double(), self.x.double()
        gap = far(output(deployed(small, x), x), output(small, x))
        return f"the deployed model differs by {gap:.1e}" if gap > 1e-6 else ""

    def onnx(self) -> str:
        said = self.export(self.small)
        return f"base, {own} without lrsearch" if said and (own := self.export(self.effective)) else said

    def export(self, model: nn.Module) -> str:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        try:
            program = torch.onnx.export(model, (self.x,), dynamo=True, verbose=False)
            assert program is not None, "the exporter that makes one"
            session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            y = torch.cat([torch.from_numpy(t).flatten() for t in session.run(None, {session.get_inputs()[0].name: self.x.numpy()})])
        except Exception as error:
            return brief(error)
        return "" if (gap := far(y, output(model, self.x))) <= 1e-3 else f"differs by {gap:.1e}"
