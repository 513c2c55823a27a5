"""The command line: arguments → one call each. Errors a user can mend are one line and exit code 2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lrsearch import __version__
from lrsearch.api import polish_study, run_study
from lrsearch.cli import export, fidelity, latency, recover
from lrsearch.cli.display import Bars, layer_table, show_result
from lrsearch.compress.inventory import inventory
from lrsearch.compress.prepare import prepare
from lrsearch.errors import LrsearchError
from lrsearch.proxy.sources import load_base, load_examples
from lrsearch.shipped import load_study
from lrsearch.spec.config import StudyConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parser().parse_args(argv)
    sys.path.insert(0, str(Path.cwd()))
    try:
        if args.command == "layers":
            return layers(load_study(args.study, args.set))
        if args.command == "polish":
            return polish(load_study(args.study, args.set), args.folder, args.out)
        if args.command == "export":
            return export.export(load_study(args.study, args.set), args)
        if args.command == "recover":
            return recover.recover(load_study(args.study, _overrides(args)), args)
        if args.command == "fidelity":
            return fidelity.fidelity(load_study(args.study, _overrides(args)), args)
        if args.command == "verify":
            return export.verify(args.folder, args.set, args.write)
        if args.command == "profile":
            return latency.profile(load_study(args.study, _overrides(args)), args.out)
        if args.command == "pack":
            return latency.pack(load_study(args.study, _overrides(args)), args.out)
        if args.command == "ingest":
            return latency.ingest(load_study(args.study, _overrides(args)), args.folder, args.out)
        return search(load_study(args.study, _overrides(args)), args.out)
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
    sample = next(load_examples(config.data.calibration, "calibration", model).batches(2))[0]
    found = inventory(prepare(model, config.space.split), sample)
    layer_table(found, config.space.menus(found.layers, found.refused))
    return 0


def _overrides(args: argparse.Namespace) -> list[str]:
    """``--set``, then the options that are short for a key."""
    short = {key: getattr(args, key.rpartition(".")[2], None) for key in _SHORT}
    return [*args.set, *(f"{key}={value}" for key, value in short.items() if value is not None)]


_SHORT = ("search.trials", "search.timeout", "device", "latency.backend", "latency.threads", "latency.batch", "recover.epochs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lrsearch", description="Automated rank and sparsity search under a hard budget.")
    parser.add_argument("--version", action="version", version=f"lrsearch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "search": "run or resume a study", "layers": "list what a study can compress, and what not",
        "polish": "fit the layers of one model of a study once more",
    }
    for name, text in texts.items():
        _add_study(commands.add_parser(name, help=text, description=text))
    _add_latency(commands)
    _add_export(commands)
    _add_recover(commands)
    run = commands.choices["search"]
    again = commands.choices["polish"]
    again.add_argument("folder", type=Path, help="a model that the study saved, such as runs/NAME/models/0012")
    again.add_argument("--out", type=Path, help="folder of the polished model (default: FOLDER-polished)")
    run.add_argument("--out", type=Path, help="study folder (default: runs/NAME)")
    run.add_argument("--trials", type=int, help="plans to search, controls not counted")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="start no new trial after so long")
    run.add_argument("--device", help="cpu, cuda, cuda:1, …")
    return parser


def _add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", help="a study file, or the name of a shipped one")
    _add_options(command)


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, e.g. search.seed=1")
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``export`` and ``verify``."""
    text = "write a model of the front for shipping, with ONNX and a certificate"
    ship = commands.add_parser("export", help=text, description=text)
    _add_study(ship)
    _add_choice(ship)
    ship.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: STUDY-FOLDER/export)")
    text = "load an exported model anew, and check all that was claimed of it"
    again = commands.add_parser("verify", help=text, description=text)
    again.add_argument("folder", type=Path, help="what lrsearch export wrote")
    again.add_argument("--write", action="store_true", help="replace the certificate in the folder")
    _add_options(again)


def _add_recover(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``recover`` and ``fidelity``."""
    text = "finetune a member of the front at length, as the study's recover: says"
    command = commands.add_parser("recover", help=text, description=text)
    _add_study(command)
    _add_choice(command)
    command.add_argument("--epochs", type=int, help="over the training data")
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where to, without joining the front (default: in the study folder)")


    text = "how well the rungs rank plans, compared with a long finetune"
    command = commands.add_parser("fidelity", help=text, description=text)
    _add_study(command)
    command.add_argument("--plans", type=int, default=16, help="how many plans, spread over the costs (default: 16)")
    command.add_argument("--long", type=int, metavar="STEPS", help="of the long finetune (default: 4 times the study's)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--study-folder", type=Path, metavar="FOLDER", help="where the study is (default: runs/NAME)")


def _add_choice(command: argparse.ArgumentParser) -> None:
    """Which member of the front, and of which study."""
    which = command.add_mutually_exclusive_group()
    which.add_argument("--pick", default="", metavar="CONDITIONS", help="the best member with e.g. 'latency_ms<=5,metric>=0.9'")
    which.add_argument("--index", type=int, metavar="N", help="the row of front.csv")
    command.add_argument("--study-folder", type=Path, metavar="FOLDER", help="where the study is (default: runs/NAME)")


def _add_latency(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``profile --latency`` and ``latency pack | ingest``."""
    text = "measure how long every choice of every layer takes"
    profile = commands.add_parser("profile", help=text, description=text)
    profile.add_argument("--latency", action="store_true", required=True, help="measure latency (there is nothing else yet)")
    profile.add_argument("--backend", help="onnxruntime, openvino, torch or torch-compile (default: the study's, or onnxruntime)")
    profile.add_argument("--out", type=Path, metavar="TABLE.json", help="the table (default: NAME-latency.json)")
    text = "measure latency on another machine, through files"
    elsewhere = commands.add_parser("latency", help=text, description=text).add_subparsers(dest="command", required=True)
    pack = elsewhere.add_parser("pack", help="write the models to time, and the program that does it")
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to")
    ingest = elsewhere.add_parser("ingest", help="make a table of what the program wrote")
    for command in (profile, pack, ingest):
        _add_study(command)
        command.add_argument("--threads", type=int, help="threads of the backend (default: the study's, or 1)")
        command.add_argument("--batch", type=int, help="examples at a time (default: the study's, or 1)")
    ingest.add_argument("folder", type=Path, help="where times.json is")
    ingest.add_argument("--out", type=Path, required=True, metavar="TABLE.json", help="the table")


if __name__ == "__main__":
    sys.exit(main())
