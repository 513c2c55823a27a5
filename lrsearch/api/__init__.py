"""What users call: searching, finishing and handing over models, from Python and from study files."""

from lrsearch.api.ask import ask
from lrsearch.api.export import export_study, load, verify
from lrsearch.api.polish import polish, polish_study
from lrsearch.api.recover import recover, recover_study
from lrsearch.api.search import run_study, search

__all__ = ["ask", "export_study", "load", "polish", "polish_study", "recover", "recover_study", "run_study", "search", "verify"]
