"""The commands of studies that several machines share: work on one, and move one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lrsearch.cli.display import show_result, watched
from lrsearch.cli.parser import overrides
from lrsearch.errors import ConfigError
from lrsearch.spec.shipped import load_study
from lrsearch.study.moving import into_folder, into_storage
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows.join import work

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
    source, target = args.source, args.target
    if ("://" in source) == ("://" in target):
        rule, remedy = "a study moves between a folder and a storage", "For example lrsearch move runs/mine postgresql://user@host/database."
        raise ConfigError(rule, value="two of a kind", place="lrsearch move", remedy=remedy)
    folder = Path(source if "://" in target else target)
    name = args.name or folder.resolve().name
    trials = into_storage(StudyFolder(folder), target, name) if "://" in target else into_folder(source, name, StudyFolder(folder))
    print(f"moved study {name}: {trials} trials")
    return 0
