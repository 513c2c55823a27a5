"""What may stand on the command line."""

import argparse
from pathlib import Path

from lrsearch.version import __version__


def overrides(args: argparse.Namespace) -> list[str]:
    """``--set``, then the options that are short for a key."""
    short = {key: getattr(args, key.rpartition(".")[2], None) for key in _SHORT}
    return [*args.set, *(f"{key}={value}" for key, value in short.items() if value is not None)]


_SHORT = ("search.trials", "search.timeout", "device", "latency.backend", "latency.threads", "latency.batch", "recover.epochs")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(prog="lrsearch", description="Automated rank and sparsity search under a hard budget.")
    whole.add_argument("--version", action="version", version=f"lrsearch {__version__}")
    commands = whole.add_subparsers(dest="command", required=True)
    texts = {
        "search": "run or resume a study", "layers": "list what a study can compress, and what not",
        "polish": "fit the layers of one model of a study once more",
    }
    for name, text in texts.items():
        _add_study(commands.add_parser(name, help=text, description=text))
    _add_latency(commands)
    _add_export(commands)
    _add_recover(commands)
    _add_ask(commands)
    run = commands.choices["search"]
    again = commands.choices["polish"]
    again.add_argument("folder", type=Path, help="a model that the study saved, such as runs/NAME/models/0012")
    again.add_argument("--out", type=Path, help="folder of the polished model (default: FOLDER-polished)")
    run.add_argument("--out", type=Path, help="study folder (default: runs/NAME)")
    run.add_argument("--trials", type=int, help="plans to search, controls not counted")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="start no new trial after so long")
    run.add_argument("--device", help="cpu, cuda, cuda:1, …")
    return whole


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
    code = again.add_mutually_exclusive_group()
    code.add_argument("--study", help="the study file whose model, data and metric to check with; nothing the folder names is run")
    code.add_argument("--model", metavar="MODULE:FUNCTION", help="builds the dense model; needs --trust (a name in timm does not)")
    again.add_argument("--trust", action="store_true", help="run the code that --model names")
    again.add_argument("--write", action="store_true", help="replace the certificate in the folder")
    again.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="a module whose formats, metrics, … the model uses")
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


def _add_ask(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "what a study knows about other budgets, at once"
    command = commands.add_parser("ask", help=text, description=text)
    _add_study(command)
    command.add_argument("--budget", action="append", required=True, metavar="METRIC=LIMIT", help="e.g. params=0.25; several hold at once")
    command.add_argument("--queue", action="store_true", help="let lrsearch search try the untried plan next")
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
