"""The command that finetunes a member of the front at length."""

import argparse

from lrsearch.cli.display import watched
from lrsearch.cli.named import study_folder
from lrsearch.cli.text import plain
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import recover as workflow
from lrsearch.workflows.steps.recover_member import RecoverReport


def recover(config: StudyConfig, args: argparse.Namespace) -> int:
    """Recover and say what came of it."""
    folder = study_folder(config, args)
    with watched() as bars:
        report = workflow.recover(folder, study=config, pick=args.pick, index=args.index, out=args.out, progress=bars)
    before, after = report.before, report.after
    metric = "" if before.metric is None or after.metric is None else f"metric {before.metric:.2%} -> {after.metric:.2%}, "
    print(f"divergence {before.divergence:.3g} -> {after.divergence:.3g}, {metric}after {after.fidelity} steps")
    print(told(report))
    print(plain(f"written to {report.folder}"))
    return 0


def told(report: RecoverReport) -> str:
    """Whether it became better, and whether it is on the front, in one line."""
    better = "it became better" if report.improved else "it did not become better than the member it began with, which stays as it is"
    front = {True: " and joined the front", False: "; it is not on the front", None: ""}
    return better + front[report.joined]
