"""The command that writes the front's files anew."""

import argparse

from lrsearch.cli.display import show_result
from lrsearch.workflows import report as workflow


def report(_: None, args: argparse.Namespace) -> int:
    """Write the files, and show the front."""
    show_result(workflow.report(args.folder))
    return 0
