"""The commands that show what a study found, and write its files anew."""

import argparse

from lrsearch.cli.display import print_front, show_result
from lrsearch.cli.named import study_folder
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import open as opened
from lrsearch.workflows import report as workflow
from lrsearch.workflows.result import Result


def report(config: StudyConfig | None, args: argparse.Namespace) -> int:
    """Write the files, and show the front."""
    return _shown(workflow.report(study_folder(config, args)), args)


def front(config: StudyConfig | None, args: argparse.Namespace) -> int:
    """Show the front, and write nothing."""
    return _shown(opened.open(study_folder(config, args)), args)


def _shown(result: Result, args: argparse.Namespace) -> int:
    if args.json:
        print_front(result)
    else:
        show_result(result, args.study_file)
    return 0
