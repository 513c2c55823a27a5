"""The command that verifies an exported model."""

import argparse
import json

from lrsearch.cli.display import show_certificate
from lrsearch.errors import ConfigError
from lrsearch.spec.config import ModelConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.registry import load_plugins
from lrsearch.workflows import verify as workflow
from lrsearch.workflows.result import renew


def verify(_: None, args: argparse.Namespace) -> int:
    """Check an exported folder and show what was found; 1 if a check failed."""
    load_plugins(args.plugin)
    certificate = workflow.verify(args.folder, model=_named_model(args), study=args.study, overrides=args.set)
    if args.write:
        certificate.save(args.folder)
        renew(args.folder.absolute().parent)
    if args.json:
        print(json.dumps(certificate.to_dict(), indent=1))
    else:
        show_certificate(certificate)
    return int(not certificate.passed)


def _named_model(args: argparse.Namespace) -> ModelConfig | None:
    """What ``--model`` says.

    Raises:
        ConfigError: it names code, and ``--trust`` is missing.
    """
    if not args.model:
        return None
    dotted = ":" in args.model
    if dotted and not args.trust:
        raise ConfigError("code runs only if you trust it", value=args.model, place="--model", remedy="Add --trust.")
    return parse(ModelConfig, {"call" if dotted else "timm": args.model}, "--model")
