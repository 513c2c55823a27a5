"""The command that finetunes a member of the front at length."""

import argparse
from pathlib import Path

from lrsearch.cli.display import Bars
from lrsearch.cli.text import plain
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import recover as workflow


def recover(config: StudyConfig, args: argparse.Namespace) -> int:
    """Recover and say what came of it."""
    folder = args.study_folder or Path("runs") / config.name
    with Bars() as bars:
        report = workflow.recover(folder, study=config, pick=args.pick, index=args.index, out=args.out, progress=bars)
    before, after = report.before, report.after
    print(f"KL {before.kl:.4f} -> {after.kl:.4f}, metric {before.metric:.2%} -> {after.metric:.2%}, after {after.fidelity} steps")
    print(plain(f"written to {report.folder}"))
    return 0
