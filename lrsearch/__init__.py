"""lrsearch: automated rank and sparsity search; every weight W becomes L + S under a hard budget."""

__version__ = "0.1.0"

import logging

from lrsearch.api import ask, load, polish, recover, search, verify
from lrsearch.compress.deploy import deployed
from lrsearch.errors import LrsearchError
from lrsearch.report.certificate import Certificate, Check
from lrsearch.report.recover import RecoverReport
from lrsearch.result import Result
from lrsearch.search.answer import Answer, Untried
from lrsearch.spec.config import FinetuneConfig, ProxyConfig, SearchConfig
from lrsearch.spec.cost import Budget, Cost
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.recover import GradualConfig, RecoverConfig
from lrsearch.spec.space import Range, Rule, Space

logging.getLogger("lrsearch").addHandler(logging.NullHandler())

__all__ = [
    "Answer", "Budget", "Certificate", "Check", "Cost", "FinetuneConfig", "GradualConfig", "LayerPlan", "LrsearchError", "Plan",
    "ProxyConfig", "Range", "RecoverConfig", "RecoverReport", "Result", "Rule", "SearchConfig", "Space", "Untried", "ask", "deployed",
    "load", "polish", "recover", "search", "verify",
]
