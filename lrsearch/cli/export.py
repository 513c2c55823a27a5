"""The command that exports a model of the front."""

import argparse

from lrsearch.cli.display import watched
from lrsearch.cli.named import study_folder
from lrsearch.cli.text import plain
from lrsearch.report.certificate import CERTIFICATE, Certificate
from lrsearch.spec.config import StudyConfig
from lrsearch.study.study_folder import StudyFolder
from lrsearch.workflows import export as workflow


def export(config: StudyConfig, args: argparse.Namespace) -> int:
    """Export and show the certificate; 1 if a check failed."""
    folder = study_folder(config, args)
    out = args.out or StudyFolder(folder).exported
    with watched() as bars:
        certificate = workflow.export(
            folder, study=config, out=out, pick=args.pick, index=args.index, progress=bars, precision=args.precision,
        )
    print(plain(certificate.markdown()))
    written = (out / CERTIFICATE).exists() and Certificate.load(out) == certificate
    print(plain(f"written to {out}") if written else "no member of the front holds its limits; nothing written")
    return int(not certificate.passed)
