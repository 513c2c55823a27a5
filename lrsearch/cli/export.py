"""The commands that export a model of the front and that verify one."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lrsearch import workflows
from lrsearch.cli.display import Bars
from lrsearch.report.certificate import CERTIFICATE, Certificate
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.shipped import lay_over


def export(config: StudyConfig, args: argparse.Namespace) -> int:
    """Export and show the certificate; 1 if a check failed."""
    study = args.study_folder or Path("runs") / config.name
    out = args.out or study / "export"
    with Bars() as bars:
        certificate = workflows.export_study(config, study, out, args.pick, args.index, bars)
    print(certificate.markdown())
    written = (out / CERTIFICATE).exists() and Certificate.load(out) == certificate
    print(f"written to {out}" if written else "no member of the front holds its limits; nothing written")
    return int(not certificate.passed)


def verify(folder: Path, overrides: Sequence[str], write: bool) -> int:
    """Check an exported folder and show what was found; 1 if a check failed."""
    whole = lay_over(Certificate.load(folder).origin.config.model_dump(mode="json"), overrides)
    changed = {override.partition("=")[0].partition(".")[0] for override in overrides}
    certificate = workflows.verify(folder, **{key: whole[key] for key in changed})
    if write:
        certificate.save(folder)
    print(certificate.markdown())
    return int(not certificate.passed)
