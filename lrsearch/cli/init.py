"""The command that writes a study file to start from."""

import argparse

from lrsearch.cli.text import plain
from lrsearch.errors import ConfigError
from lrsearch.spec.shipped import load_study
from lrsearch.spec.starter import for_images, for_module


def init(_: None, args: argparse.Namespace) -> int:
    """Write the file, which is read back, and say what to type next."""
    out = args.out
    if out.exists():
        raise ConfigError("must not exist yet", value="a file", place=str(out), remedy="Give another --out.")
    if (args.module is None) == (args.timm is None) or (args.timm is None) != (args.images is None):
        remedy = "lrsearch init model.py, or lrsearch init --timm NAME --images FOLDER."
        given = {"a module": args.module, "--timm": args.timm, "--images": args.images}
        told = " and ".join(name for name, value in given.items() if value is not None) or "neither"
        raise ConfigError("give a module, or --timm with --images", value=told, place="lrsearch init", remedy=remedy)
    text = for_module(args.module) if args.module else for_images(args.timm, args.images, args.checkpoint)
    out.write_text(text, encoding="utf-8")
    try:
        load_study(str(out))
    except BaseException:
        out.unlink()
        raise
    print(plain(f"written to {out}: read it, then"))
    for command in ("layers", "search"):
        print(plain(f"  lrsearch {command} {out}"))
    return 0
