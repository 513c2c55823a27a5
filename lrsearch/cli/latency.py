"""The commands that measure latency: here, or through files on another machine."""

import argparse
import json

from lrsearch.cli.display import watched
from lrsearch.cli.text import plain
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.progress import Progress
from lrsearch.workflows import latency as workflow


def measure(config: StudyConfig, args: argparse.Namespace) -> int:
    """Measure the latency table of a study on this machine."""
    if args.json:
        return _show(workflow.measure(config, out=args.out, progress=Progress()), as_json=True)
    with watched() as bars:
        made = workflow.measure(config, out=args.out, progress=bars)
    return _show(made, as_json=False)


def pack(config: StudyConfig, args: argparse.Namespace) -> int:
    """Write what another machine is to time."""
    if args.json:
        made = workflow.pack(config, out=args.out)
        print(json.dumps({"models": made.models, "bytes": made.bytes, "folder": str(made.folder)}, indent=1))
        return 0
    with watched() as bars:
        made = workflow.pack(config, out=args.out, progress=bars)
    size = f"{made.bytes / 2**20:.0f} MiB"
    print(plain(f"{made.models} models, {size}, in {made.folder}: copy it to the device, run `python runner.py` there"))
    return 0


def ingest(config: StudyConfig, args: argparse.Namespace) -> int:
    """Make the table of what came back."""
    return _show(workflow.ingest(config, folder=args.folder, out=args.out), args.json)


def _show(made: workflow.Measured, as_json: bool) -> int:
    if as_json:
        print(json.dumps(made.to_dict(), indent=1))
        return 0
    table, c = made.table, made.table.conditions
    print(plain(f"{c.backend} {c.version}, threads {c.threads}, batch {c.batch}, {c.dtype}, {c.cpu}, load {c.load}, {c.date}"))
    print(f"dense model {table.dense.ms:.3f} ms (median {table.dense.median:.3f}); {made.forms} forms of "
          f"{len(table.entries)} distinct layers, {made.faster} faster than dense")
    if made.dense:
        float32, int8 = made.dense["float32"], made.dense["int8"]
        print(f"dense in float32 {float32:.3f} ms, in int8 {int8:.3f} ms ({int8 / float32:.2f}): what a target has to beat")
    if table.stray:
        print(f"whole models save {table.scale:.2f} times what their layers save alone, to within {table.stray:.1%} of their latency")
    print(plain(f"written to {made.path}"))
    return 0
