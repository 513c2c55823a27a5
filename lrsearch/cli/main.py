"""The command line: arguments → one call each. Errors a user can mend are one line and exit code 2."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lrsearch.cli import ask, export, fidelity, latency, recover
from lrsearch.cli.display import Bars, layer_table, show_result
from lrsearch.cli.parser import overrides, parser
from lrsearch.compress.faithful import plain_layers
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.errors import LrsearchError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.registry import load_plugins
from lrsearch.spec.shipped import load_study
from lrsearch.task.sources import load_base, load_examples
from lrsearch.workflows import polish_study, run_study


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        if args.command == "layers":
            return layers(load_study(args.study, args.set))
        if args.command == "polish":
            return polish(load_study(args.study, args.set), args.folder, args.out)
        if args.command == "export":
            return export.export(load_study(args.study, args.set), args)
        if args.command == "recover":
            return recover.recover(load_study(args.study, overrides(args)), args)
        if args.command == "fidelity":
            return fidelity.fidelity(load_study(args.study, overrides(args)), args)
        if args.command == "ask":
            return ask.ask(load_study(args.study, args.set), args)
        if args.command == "verify":
            load_plugins(args.plugin)
            return export.verify(args)
        if args.command == "profile":
            return latency.profile(load_study(args.study, overrides(args)), args.out)
        if args.command == "pack":
            return latency.pack(load_study(args.study, overrides(args)), args.out)
        if args.command == "ingest":
            return latency.ingest(load_study(args.study, overrides(args)), args.folder, args.out)
        return search(load_study(args.study, overrides(args)), args.out)
    except LrsearchError as error:
        if args.debug:
            raise
        print(f"lrsearch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lrsearch: interrupted; what is finished is kept, the same command goes on from there.", file=sys.stderr)
        return 130


def search(config: StudyConfig, out: Path | None) -> int:
    """Run or resume a study and show its front."""
    folder = out or Path("runs") / config.name
    with Bars() as bars:
        result = run_study(config, folder, bars)
    show_result(result)
    return 0


def polish(config: StudyConfig, folder: Path, out: Path | None) -> int:
    """Polish one model of a study, and say whether that helped."""
    report = polish_study(config, folder, out)
    print(f"held-out KL {report.before:.4f} -> {report.after:.4f} ({report.examples} examples fitted, {report.held_out} held out)")
    print(f"written to {report.folder}" if report.folder else "not better; nothing written")
    return 0


def layers(config: StudyConfig) -> int:
    """Show what can be compressed, with how many choices, and what cannot, and why."""
    assert config.model is not None, "load_study checks this"
    assert config.data is not None, "load_study checks this"
    model = load_base(config.model)
    sample = load_examples(config.data.calibration, "calibration", model).sample()
    ready = prepare(model, config.space.split)
    found = plain_layers(ready, inventory(ready, sample), sample)
    layer_table(found, config.space.menus(found.layers, found.refused))
    return 0


if __name__ == "__main__":
    sys.exit(main())
