"""The study that a command is told of: a study file, or a study folder, with or without its file."""

import argparse
from pathlib import Path

from lrsearch.cli.parser import overrides
from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import from_yaml
from lrsearch.spec.shipped import find, load_study, study_of
from lrsearch.spec.starter import for_images
from lrsearch.study.study_folder import StudyFolder

FROM_FILES = ("search", "layers", "profile")  # commands that need no study folder
FROM_IMAGES = ("search", "layers")  # those that need no study file either


def config_of(args: argparse.Namespace) -> StudyConfig | None:
    """The configuration that ``args`` name; notes the study folder and the study file in them, where they name one. None if nothing of a
    folder that needs code is asked.

    Raises:
        ConfigError: there is no such study, or it may not name what is code.
    """
    if args.command in FROM_IMAGES and (args.study is None or args.timm or args.images or args.checkpoint):
        return _of_images(args)
    folder = _folder(args)
    if folder is None:
        if args.study_file:
            rule, remedy = "needs a study folder beside it", "Give the folder first: lrsearch COMMAND FOLDER --study FILE."
            raise ConfigError(rule, value=args.study, place="--study", remedy=remedy)
        _refuse_absent(args)
        args.study_file = args.study  # what is typed next names it beside the folder
        return load_study(args.study, overrides(args))
    args.study_folder = getattr(args, "study_folder", None) or folder
    if args.command == "search":
        args.out = args.out or folder
    if not args.needs_code:
        return None

    from lrsearch.workflows.from_folder import config_alone, config_with

    if args.study_file:
        return config_with(folder, load_study(args.study_file, overrides(args)))
    return config_alone(folder, overrides(args))


def study_folder(config: StudyConfig | None, args: argparse.Namespace) -> Path:
    """Where the study of a command is: where it was said to be, or where a search puts it."""
    folder: Path | None = args.study_folder
    return folder or Path("runs") / (config.name if config else "study")


def _refuse_absent(args: argparse.Namespace) -> None:
    """Check that there is such a file, or a shipped one."""
    try:
        find("studies", args.study)
    except ConfigError as error:
        rule = "must be a study file, the name of a shipped one, or a study folder"
        raise ConfigError(rule, value=args.study, place=f"lrsearch {args.command}", remedy=error.remedy) from None


def _of_images(args: argparse.Namespace) -> StudyConfig:
    """The study that ``lrsearch init`` would write a file of."""
    if args.study is not None or args.timm is None or args.images is None or args.study_file:
        rule, remedy = "give either a study, or --timm with --images", "For example --timm resnet18 --images photos."
        given = {"STUDY": args.study, "--timm": args.timm, "--images": args.images, "--study": args.study_file}
        told = " and ".join(name for name, value in given.items() if value is not None) or "neither"
        raise ConfigError(rule, value=told, place=f"lrsearch {args.command}", remedy=remedy)
    text = for_images(args.timm, args.images, args.checkpoint)
    return study_of(from_yaml(text, "--timm"), overrides(args), f"{args.timm}-{args.images.absolute().name}", "--timm")


def _folder(args: argparse.Namespace) -> Path | None:
    """The study folder that is named instead of a file; that of the model, where only one is named."""
    if args.study is None:
        given = Path(args.folder).parent.parent
        if not args.study_file and not StudyFolder(given).identity.exists():
            rule, remedy = "must be a model folder in a study folder", "For example runs/mine/models/0012; or give its study file first."
            raise ConfigError(rule, value=str(args.folder), place=f"lrsearch {args.command}", remedy=remedy)
        return given
    given = Path(args.study)
    if not given.is_dir():
        return None
    if not StudyFolder(given).identity.exists():  # a folder may have the name of a shipped study
        try:
            _refuse_absent(args)
        except ConfigError:
            if args.command in FROM_FILES and not args.study_file:
                raise
            return given
        return None
    return given
