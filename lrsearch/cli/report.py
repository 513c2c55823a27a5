"""The commands that show what a study found, and write its files anew."""

import argparse

from lrsearch.cli.display import print_front, show_result
from lrsearch.workflows import open as opened
from lrsearch.workflows import report as workflow
from lrsearch.workflows.result import Result


def report(_: None, args: argparse.Namespace) -> int:
    """Write the files, and show the front."""
    return _shown(workflow.report(args.folder), args)


def front(_: None, args: argparse.Namespace) -> int:
    """Show the front, and write nothing."""
    return _shown(opened.open(args.folder), args)


def _shown(result: Result, args: argparse.Namespace) -> int:
    (print_front if args.json else show_result)(result)
    return 0
