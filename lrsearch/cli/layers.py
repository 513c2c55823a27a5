"""The command that lists what can be compressed."""

import argparse
import json

from lrsearch.cli.display import layer_table
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import layers as workflow


def layers(config: StudyConfig, args: argparse.Namespace) -> int:
    """Show what can be compressed, with how many choices, and what cannot, and why."""
    found = workflow.layers(config)
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        layer_table(found)
    return 0
