"""lrsearch: automated rank and sparsity search; every weight W becomes L + S under a hard budget."""

import logging

from lrsearch.deploy.deployed import deployed
from lrsearch.errors import LrsearchError
from lrsearch.report.certificate import Certificate, Check
from lrsearch.spec.config import FinetuneConfig, ProxyConfig, SearchConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.recover import GradualConfig, RecoverConfig
from lrsearch.spec.space import Range, Rule, Space
from lrsearch.study.what_if import Answer, Untried
from lrsearch.version import __version__
from lrsearch.workflows import ask, layers, load, polish, recover, search, verify
from lrsearch.workflows.recover import RecoverReport
from lrsearch.workflows.result import Result

logging.getLogger("lrsearch").addHandler(logging.NullHandler())

__all__ = [
    "Answer", "Budget", "Certificate", "Check", "Cost", "FinetuneConfig", "GradualConfig", "LayerPlan", "LrsearchError", "Plan",
    "ProxyConfig", "Range", "RecoverConfig", "RecoverReport", "Result", "Rule", "SearchConfig", "Space", "Untried", "__version__", "ask",
    "deployed", "layers", "load", "polish", "recover", "search", "verify",
]
