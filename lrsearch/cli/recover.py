"""The command that finetunes a member of the front at length."""

import argparse
from pathlib import Path

from lrsearch import workflows
from lrsearch.cli.display import Bars
from lrsearch.spec.config import StudyConfig


def recover(config: StudyConfig, args: argparse.Namespace) -> int:
    """Recover and say what came of it."""
    study = args.study_folder or Path("runs") / config.name
    with Bars() as bars:
        report = workflows.recover_study(config, study, args.pick, args.index, args.out, bars)
    before, after = report.before, report.after
    print(f"KL {before.kl:.4f} -> {after.kl:.4f}, metric {before.metric:.2%} -> {after.metric:.2%}, after {after.fidelity} steps")
    print(f"written to {report.folder}")
    return 0
