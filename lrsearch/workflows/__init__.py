"""What users call: searching, finishing and handing over models, from Python and from study files."""

from lrsearch.workflows.artifact import export_study, load
from lrsearch.workflows.ask import ask
from lrsearch.workflows.layers import layers
from lrsearch.workflows.polish_api import polish, polish_study
from lrsearch.workflows.recover_api import recover, recover_study
from lrsearch.workflows.search import run_study, search
from lrsearch.workflows.verify_api import verify

__all__ = ["ask", "export_study", "layers", "load", "polish", "polish_study", "recover", "recover_study", "run_study", "search", "verify"]
