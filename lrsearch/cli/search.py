"""The command that runs or resumes a study."""

import argparse
import sys

from lrsearch.cli.display import print_front, show_result, watched
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Lines, Progress
from lrsearch.workflows import search as workflow
from lrsearch.workflows.result import Result


def search(config: StudyConfig, args: argparse.Namespace) -> int:
    """Search and show the front."""
    if args.json:
        print_front(_searched(config, args, Lines(sys.stderr)))
        return 0
    with watched() as bars:
        result = _searched(config, args, bars)
    show_result(result, args.study_file)
    return 0


def _searched(config: StudyConfig, args: argparse.Namespace, progress: Progress) -> Result:
    """By this process, or by the workers that it starts."""
    shared = {"out": args.out, "progress": progress, "storage": args.storage, "artifacts": args.artifacts}
    if args.workers is None and args.ray is None:
        return workflow.search(config, **shared)
    from lrsearch.workflows.together import search_together

    count = None if args.workers in (None, "auto") else args.workers
    return search_together(config, count, ray=args.ray, gpus=args.gpus_per_worker, cpus=args.cpus_per_worker, **shared)
