"""What to import to bring one's own format, pattern, latency backend, cost metric, sampler or task: each one class in one registry.

A class is registered by the decorator ``REGISTRY.register``. A study finds it in one of three ways: its file names the module that
registers it under ``plugins``; an installed package has an entry point for it, in the group ``lrsearch.formats``,
``lrsearch.patterns``, ``lrsearch.backends``, ``lrsearch.metrics``, ``lrsearch.samplers`` or ``lrsearch.tasks``; or the module was
imported from Python.

Example:
    >>> @METRICS.register
    ... class Energy(CostMetric):
    ...     name, unit, title = "energy_uj", "microjoules", "energy, % of dense"
    ...
    ...     def layer(self, layer, plan, cost):
    ...         return 4.6e-6 * cost.macs
    ...
    ...     def rest(self, cost):
    ...         return 4.6e-6 * cost.macs
"""

from lrsearch.compress.formats.base import Factors, LowRank, Problem
from lrsearch.compress.formats.chain import Chain, DecomposedChain
from lrsearch.latency.backends import BACKENDS, Backend, OnnxBackend
from lrsearch.latency.runner import Runner
from lrsearch.spec.cost import Cost
from lrsearch.spec.formats import FORMATS, Rank, Shapes
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.metrics import METRICS, CostMetric
from lrsearch.spec.pattern import PATTERNS, Layout, Pattern
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.registry import Registry, load_plugins
from lrsearch.spec.samplers import SAMPLERS, Sampler
from lrsearch.task.base import Task
from lrsearch.task.registry import TASKS

__all__ = [
    "BACKENDS", "FORMATS", "METRICS", "PATTERNS", "SAMPLERS", "TASKS", "Backend", "Chain", "Cost", "CostMetric", "DecomposedChain",
    "Factors",
    "LayerPlan", "LayerSpec", "Layout", "LowRank", "OnnxBackend", "Pattern", "Plan", "Problem", "Rank", "Registry", "Runner", "Sampler",
    "Shapes", "Task", "load_plugins",
]
