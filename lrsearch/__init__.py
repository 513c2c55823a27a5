"""A trained network and a budget in, a front of compressed models out: every weight W becomes L + S, low-rank + sparse.

For example::

    lrsearch.layers(model, calibration)     # what can be compressed, what stays dense, and why
    budget = lrsearch.Budget(params=0.3)
    result = lrsearch.search(model, calibration=calibration, score=score, budget=budget, out="runs/mine")
    result                                  # the models to choose from, with what each costs and loses
    small = result.load(0)                  # the model in row 0 of result.front
    result.export(index=0)                  # a folder to ship, with ONNX and a certificate
    result = lrsearch.open("runs/mine")     # another day

calibration and score are inputs, or (inputs, labels). ``lrsearch.search?`` and ``lrsearch.Budget?`` say more.
"""

import logging
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lrsearch.version import __version__

if TYPE_CHECKING:
    from lrsearch.deploy.deployed import deployed
    from lrsearch.errors import LrsearchError
    from lrsearch.latency.table import LatencyTable
    from lrsearch.report.certificate import Certificate, Check
    from lrsearch.spec.config import FinetuneConfig, ProxyConfig, SearchConfig
    from lrsearch.spec.cost import Budget, Cost
    from lrsearch.spec.plan import LayerPlan, Plan
    from lrsearch.spec.progress import Progress
    from lrsearch.spec.recover import GradualConfig, RecoverConfig
    from lrsearch.spec.space import Range, Rule, Space
    from lrsearch.study.what_if import Answer, Untried
    from lrsearch.task.base import Task
    from lrsearch.workflows import latency
    from lrsearch.workflows.ask import ask
    from lrsearch.workflows.export import export
    from lrsearch.workflows.fidelity import Fidelity, fidelity
    from lrsearch.workflows.join import work
    from lrsearch.workflows.latency import measure as profile
    from lrsearch.workflows.layers import Layers, layers
    from lrsearch.workflows.load import load
    from lrsearch.workflows.move import move
    from lrsearch.workflows.open import open
    from lrsearch.workflows.polish import polish
    from lrsearch.workflows.recover import recover
    from lrsearch.workflows.report import report
    from lrsearch.workflows.result import Result
    from lrsearch.workflows.search import search
    from lrsearch.workflows.steps.recover_member import RecoverReport
    from lrsearch.workflows.verify import verify

_PLACES = {  # name → module, and what it is called there where that differs; nothing where it is the module
    "Answer": "study.what_if", "Budget": "spec.cost", "Certificate": "report.certificate", "Check": "report.certificate",
    "Cost": "spec.cost", "Fidelity": "workflows.fidelity", "FinetuneConfig": "spec.config", "GradualConfig": "spec.recover",
    "LatencyTable": "latency.table", "LayerPlan": "spec.plan", "Layers": "workflows.layers", "LrsearchError": "errors",
    "Plan": "spec.plan", "Progress": "spec.progress", "ProxyConfig": "spec.config", "Range": "spec.space", "RecoverConfig": "spec.recover",
    "RecoverReport": "workflows.steps.recover_member", "Result": "workflows.result", "Rule": "spec.space",
    "SearchConfig": "spec.config", "Space": "spec.space", "Task": "task.base", "Untried": "study.what_if", "ask": "workflows.ask",
    "deployed": "deploy.deployed", "export": "workflows.export", "fidelity": "workflows.fidelity", "latency": "workflows.latency:",
    "layers": "workflows.layers", "load": "workflows.load", "move": "workflows.move", "open": "workflows.open",
    "polish": "workflows.polish", "profile": "workflows.latency:measure",
    "recover": "workflows.recover", "report": "workflows.report", "search": "workflows.search", "verify": "workflows.verify",
    "work": "workflows.join",
}

__all__ = [
    "Answer", "Budget", "Certificate", "Check", "Cost", "Fidelity", "FinetuneConfig", "GradualConfig", "LatencyTable", "LayerPlan",
    "Layers", "LrsearchError", "Plan", "Progress", "ProxyConfig", "Range", "RecoverConfig", "RecoverReport", "Result", "Rule",
    "SearchConfig",
    "Space", "Task", "Untried", "__version__", "ask", "deployed", "export", "fidelity", "latency", "layers", "load", "move", "open",
    "polish", "profile",
    "recover", "report", "search", "verify", "work",
]

# names are imported when they are first used, so that importing lrsearch takes no time
logging.getLogger("lrsearch").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """A public name, imported now (PEP 562); what libraries set for warnings when they are imported is put back."""
    if name not in _PLACES:
        raise AttributeError(f"module 'lrsearch' has no attribute {name!r}")
    place, colon, there = _PLACES[name].partition(":")
    with warnings.catch_warnings():
        module = import_module(f"lrsearch.{place}")
    found = module if colon and not there else getattr(module, there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Importing a module below a package named as one of _PLACES would put the package in its place. Help shows a class's docstring.
class _Package(ModuleType):
    __doc__ = None

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
