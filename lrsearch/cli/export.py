"""The commands that export a model of the front and that verify one."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrsearch import workflows
from lrsearch.cli.display import Bars
from lrsearch.errors import ConfigError
from lrsearch.report.certificate import CERTIFICATE, Certificate
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.shipped import lay_over, load_study
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows.verify_api import Named, verify_named

CODE = ("model", "data")  # keys whose overrides are the user's own words, never laid over a folder's


def export(config: StudyConfig, args: argparse.Namespace) -> int:
    """Export and show the certificate; 1 if a check failed."""
    study = args.study_folder or Path("runs") / config.name
    out = args.out or StudyFolder(study).exported
    with Bars() as bars:
        certificate = workflows.export_study(config, study, out, args.pick, args.index, bars)
    print(certificate.markdown())
    written = (out / CERTIFICATE).exists() and Certificate.load(out) == certificate
    print(f"written to {out}" if written else "no member of the front holds its limits; nothing written")
    return int(not certificate.passed)


def verify(args: argparse.Namespace) -> int:
    """Check an exported folder and show what was found; 1 if a check failed."""
    origin = Certificate.load(args.folder).origin
    if args.study:
        config = load_study(args.study, args.set)
        said = config.model_dump(mode="json")
    else:
        said = lay_over(_named_model(args), args.set)
        claims = [o for o in args.set if o.partition("=")[0].partition(".")[0] not in CODE]
        config = parse(StudyConfig, lay_over(origin.config.model_dump(mode="json"), claims), "--set")
    must_read = any(override.startswith("data") for override in args.set)
    certificate = verify_named(args.folder, replace(origin, config=config), Named.of(said), must_read=must_read)
    if args.write:
        certificate.save(args.folder)
    print(certificate.markdown())
    return int(not certificate.passed)


def _named_model(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--model`` says, as keys of a study file.

    Raises:
        ConfigError: it names code, and ``--trust`` is missing.
    """
    if not args.model:
        return {}
    dotted = ":" in args.model
    if dotted and not args.trust:
        raise ConfigError("code runs only if you trust it", value=args.model, place="--model", remedy="Add --trust.")
    return {"model": {"call" if dotted else "timm": args.model}}
