"""The command that runs or resumes a study."""

import argparse
import sys
from pathlib import Path

from lrsearch.cli.display import print_front, show_result, watched
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Lines
from lrsearch.workflows import search as workflow


def search(config: StudyConfig, args: argparse.Namespace) -> int:
    """Search and show the front."""
    shared = {"storage": args.storage, "artifacts": args.artifacts}
    if args.json:
        print_front(workflow.search(config, out=args.out, progress=Lines(sys.stderr), **shared))
        return 0
    with watched() as bars:
        result = workflow.search(config, out=args.out, progress=bars, **shared)
    show_result(result, args.study_file or (None if args.study is None or Path(args.study).is_dir() else args.study))
    return 0
