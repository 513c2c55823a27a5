"""The command that fits the layers of one model once more."""

import argparse

from lrsearch.cli.text import plain
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import polish as workflow


def polish(config: StudyConfig, args: argparse.Namespace) -> int:
    """Polish one model of a study, and say whether that helped."""
    report = workflow.polish(args.folder, study=config, out=args.out)
    print(f"held-out divergence {report.before:.3g} -> {report.after:.3g} ({report.examples} examples fitted, {report.held_out} held out)")
    print(plain(f"written to {report.folder}") if report.folder else "not better; nothing written")
    return 0
