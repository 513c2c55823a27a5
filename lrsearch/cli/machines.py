"""The commands of studies that several machines share: work on one, and move one."""

import argparse
from typing import TYPE_CHECKING

from lrsearch.cli.display import show_result, watched
from lrsearch.cli.parser import overrides
from lrsearch.spec.shipped import load_study
from lrsearch.workflows.join import work
from lrsearch.workflows.move import move as moved

if TYPE_CHECKING:
    from lrsearch.spec.config import StudyConfig


def worker(_: "StudyConfig | None", args: argparse.Namespace) -> int:
    """Work on a study of another machine's and show the front."""
    said = overrides(args)
    file = load_study(args.file, said) if args.file else None
    with watched() as bars:
        result = work(args.storage, args.study, file=file, out=args.out, artifacts=args.artifacts, progress=bars, overrides=said)
    show_result(result)
    return 0


def move(_: "StudyConfig | None", args: argparse.Namespace) -> int:
    """Move a study into a storage, or back."""
    print(f"moved {moved(args.source, args.target, name=args.name)} trials")
    return 0
