"""The command that runs or resumes a study."""

import argparse

from lrsearch.cli.display import Bars, print_front, show_result
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import search as workflow


def search(config: StudyConfig, args: argparse.Namespace) -> int:
    """Search and show the front."""
    if args.json:
        print_front(workflow.search(config, out=args.out))
        return 0
    with Bars() as bars:
        result = workflow.search(config, out=args.out, progress=bars)
    show_result(result)
    return 0
