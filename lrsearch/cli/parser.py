"""What may stand on the command line."""

import argparse
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from lrsearch.cli.amounts import amount, number_of_workers
from lrsearch.cli.guide import DESCRIPTION, EPILOG, EXAMPLES
from lrsearch.cli.text import one_line
from lrsearch.version import __version__

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
_SHORT = ("name", "search.trials", "search.timeout", "device", "latency.backend", "latency.threads", "latency.batch", "recover.epochs")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # as shtab has it
STUDY = "a study file, the name of a shipped one, or a study folder"


def overrides(args: argparse.Namespace) -> list[str]:
    """``--set``, then the options that are short for a key."""
    short = {key: getattr(args, key.rpartition(".")[2], None) for key in _SHORT}
    return [*args.set, *(f"{key}={value}" for key, value in short.items() if value is not None)]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and which arguments are files, to a shell that completes them."""

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        action = super().add_argument(*names, **how)
        if how.get("type") is Path or how.get("metavar") in ("STUDY", "FILE"):
            action.complete = _FILES  # type: ignore[attr-defined]
        return action

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; its help lists them in groups, not one after another."""
    whole = listed()
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            action._choices_actions.clear()
    return whole


def listed() -> argparse.ArgumentParser:
    """The same with a text on each command, as shtab needs it to complete what follows them."""
    whole = Parser(
        prog="lrsearch", description=DESCRIPTION, epilog=EPILOG, usage="lrsearch COMMAND …",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"lrsearch {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, prog="lrsearch", metavar="COMMAND", help="one of those below")
    _add_init(commands)
    _add_search(commands)
    _add_look(commands)
    _add_finish(commands)
    _add_ship(commands)
    _add_latency(commands)
    _add_machines(commands)
    return whole


def _plain(commands: Commands, name: str, text: str) -> Parser:
    """A command that reads no study file."""
    examples = "\n".join(["examples", *(f"  {line}" for line in EXAMPLES.get(name, ()))]) if name in EXAMPLES else None
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(reads_study=False)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command


def _command(commands: Commands, name: str, text: str, needs_code: bool = True, optional: bool = False) -> Parser:
    """A command of a study.

    Args:
        needs_code: it runs the model, so that a folder which names code is not enough.
        optional: the study need not be named, as something in its folder is, or its model and data are.
    """
    command = _plain(commands, name, text)
    command.set_defaults(reads_study=True, needs_code=needs_code)
    command.add_argument("study", metavar="STUDY", nargs="?" if optional else None, help=STUDY)
    file_help = "the study file, if STUDY is a folder and model or data are code of yours"
    command.add_argument("--study", dest="study_file", metavar="FILE", help=file_help)
    told = "change a key of the study file, e.g. search.seed=1"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=told)
    return command


def _add_init(commands: Commands) -> None:
    """``init``."""
    begin = _plain(commands, "init", "write a commented study file for your model and data")
    told = "a file of yours with functions for model and data; it is read, not run"
    begin.add_argument("module", type=Path, nargs="?", metavar="MODEL.py", help=told)
    _add_images(begin)
    begin.add_argument("--out", type=Path, default=Path("study.yaml"), metavar="FILE", help="where to (default: study.yaml)")


def _add_search(commands: Commands) -> None:
    """``search`` and ``layers``."""
    run = _command(commands, "search", "run a study, or go on with it where it stopped", optional=True)
    _add_images(run)
    run.add_argument("--out", type=Path, metavar="FOLDER", help="study folder (default: runs/NAME, or STUDY where that is a folder)")
    run.add_argument("--trials", type=int, metavar="N", help="plans to search, controls not counted")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="start no new trial after so many seconds")
    _add_shared(run)
    _add_workers(run)
    run.add_argument("--name", metavar="NAME", help="what the study is called, in the storage and in runs/ (default: as its file says)")
    _add_device(run)
    _add_json(run)
    table = _command(commands, "layers", "list what a study can compress, and what not, and why", optional=True)
    _add_images(table)
    _add_json(table)


def _add_images(command: argparse.ArgumentParser) -> None:
    """A model and data that need no study file."""
    command.add_argument("--timm", metavar="NAME", help="a model of timm, instead of a file that says which")
    command.add_argument("--images", type=Path, metavar="FOLDER", help="with --timm: FOLDER/class/image.jpg, or train/ and val/")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="with --timm: its weights (default: timm's own)")


def _add_look(commands: Commands) -> None:
    """``front``, ``report`` and ``ask``."""
    texts = {"front": "show the models that a study found", "report": "write front.csv, front.parquet and report.html of a study anew"}
    for name, text in texts.items():
        command = _command(commands, name, text, needs_code=False)
        _add_folder(command)
        _add_json(command)
    ask = _command(commands, "ask", "say in seconds what a study knows about other budgets", needs_code=False)
    told = "a limit, e.g. params=0.25; give several to meet all of them"
    ask.add_argument("--budget", action="append", required=True, metavar="METRIC=LIMIT", help=told)
    ask.add_argument("--queue", action="store_true", help="let the search try next the plan that is not yet tried")
    _add_folder(ask)
    _add_json(ask)


def _add_finish(commands: Commands) -> None:
    """``polish``, ``recover`` and ``fidelity``."""
    again = _command(commands, "polish", "fit the layers of one model of a study once more", optional=True)
    again.add_argument("folder", type=Path, help="a model that the study saved, such as runs/NAME/models/0012")
    again.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the polished model (default: FOLDER-polished)")
    command = _command(commands, "recover", "finetune a model of the front at length, with the settings under recover: of the study file")
    _add_choice(command)
    command.add_argument("--epochs", type=int, metavar="N", help="passes over the training data (default: the study's)")
    told = "another folder; the model then does not join the front (default: in the study folder)"
    command.add_argument("--out", type=Path, metavar="FOLDER", help=told)
    _add_device(command)
    command = _command(commands, "fidelity", "say how far the search's short finetunes rank models rightly, by long finetunes of some")
    command.add_argument("--plans", type=int, default=16, metavar="N", help="how many plans, spread over the costs (default: 16)")
    command.add_argument("--long", type=int, metavar="STEPS", help="steps of the long finetune (default: 4 times the study's)")
    _add_device(command)
    _add_folder(command)
    _add_json(command)


def _add_ship(commands: Commands) -> None:
    """``export`` and ``verify``."""
    ship = _command(commands, "export", "write a model of the front for shipping, with ONNX and a certificate")
    _add_choice(ship)
    ship.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: STUDY-FOLDER/export)")
    told = "of model.onnx: float32, float16 or int8 (default: the study's deploy.precision)"
    ship.add_argument("--precision", metavar="TYPE", help=told)
    again = _plain(commands, "verify", "load an exported model anew, and check all that was claimed of it")
    again.add_argument("folder", type=Path, help="the folder that lrsearch export wrote")
    code = again.add_mutually_exclusive_group()
    code.add_argument("--study", help="the study file that names model, data and metric; nothing that the folder names is run")
    told = "what builds the dense model; needs --trust, which the name of a model in timm does not"
    code.add_argument("--model", metavar="MODULE:FUNCTION", help=told)
    again.add_argument("--trust", action="store_true", help="run the code that --model names")
    again.add_argument("--write", action="store_true", help="replace the certificate in the folder")
    again.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the study, e.g. budget.params=0.5")
    again.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="a module whose formats, metrics, … the model uses")
    _add_json(again)


def _add_latency(commands: Commands) -> None:
    """``profile --latency`` and ``latency measure | pack | ingest``."""
    text = "measure how long every choice of every layer takes"
    profile = _command(commands, "profile", text)
    profile.add_argument("--latency", action="store_true", required=True, help="measure latency (there is nothing else yet)")
    text = "measure latency here, or on another machine through files"
    latency = commands.add_parser("latency", help=text, description=f"{text[0].upper()}{text[1:]}.")
    ways = latency.add_subparsers(dest="command", required=True, metavar="COMMAND", help="measure, pack or ingest")
    measure = _command(ways, "measure", "measure the table on this machine")
    pack = _command(ways, "pack", "write the models to time, and the program that does it")
    ingest = _command(ways, "ingest", "make a table of what the program wrote")
    for command in (profile, measure):
        command.add_argument("--backend", metavar="NAME", help="onnxruntime (default: the study's), openvino, torch, torch-compile")
        command.add_argument("--out", type=Path, metavar="TABLE.json", help="the table (default: NAME-latency.json)")
    for command in (profile, measure, pack, ingest):
        command.add_argument("--threads", type=int, metavar="N", help="threads of the backend (default: the study's, or 1)")
        command.add_argument("--batch", type=int, metavar="N", help="examples at a time (default: the study's, or 1)")
        _add_json(command)
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to")
    ingest.add_argument("folder", type=Path, help="what lrsearch latency pack wrote, with times.json in it")
    ingest.add_argument("--out", type=Path, required=True, metavar="TABLE.json", help="the table")


def _add_choice(command: argparse.ArgumentParser) -> None:
    """Which member of the front, and of which study."""
    which = command.add_mutually_exclusive_group()
    told = "the best model that satisfies e.g. 'latency_ms<=5,metric>=0.9'; names are columns of front.csv"
    which.add_argument("--pick", default="", metavar="CONDITIONS", help=told)
    which.add_argument("--index", type=int, metavar="N", help="the model in this row: # in the table that lrsearch front shows")
    _add_folder(command)


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("--study-folder", type=Path, metavar="FOLDER", help="where the study is (default: runs/NAME)")


def _add_machines(commands: Commands) -> None:
    """``worker`` and ``move``."""
    work = _plain(commands, "worker", "search a study that another machine began, until nothing is left to do")
    work.add_argument("file", nargs="?", metavar="FILE", help="the study file, where model and data are code")
    _add_shared(work, required=True)
    work.add_argument("--study", required=True, metavar="NAME", help="what the study is called in the storage")
    work.add_argument("--out", type=Path, metavar="FOLDER", help="folder for this machine's report, log and files (default: runs/NAME)")
    work.add_argument("--timeout", type=float, metavar="SECONDS", help="start no new trial after so many seconds")
    work.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the study, e.g. search.timeout=600")
    _add_device(work)
    text = "move a study into a storage that machines share, or from there into a folder"
    away = _plain(commands, "move", text)
    away.add_argument("source", metavar="FROM", help="a study folder, or the URL of a storage")
    away.add_argument("target", metavar="TO", help="the URL of a storage, or a study folder")
    away.add_argument("--name", help="what the study is called in the storage (default: as the folder)")


def _add_shared(command: argparse.ArgumentParser, required: bool = False) -> None:
    """Where workers on several machines meet."""
    told = "where the trials are: postgresql://…, mysql://… or journal:///PATH"
    command.add_argument("--storage", metavar="URL", required=required, help=told)
    command.add_argument("--artifacts", metavar="PLACE", help="where the large files of all machines are: a folder, or s3://BUCKET/PREFIX")


def _add_workers(command: argparse.ArgumentParser) -> None:
    """Workers that the command starts."""
    command.add_argument("--workers", type=number_of_workers, metavar="N", help="search by N processes, or auto: one per GPU")
    command.add_argument("--ray", metavar="ADDRESS", help="let Ray place the workers, for example auto; needs --storage")
    command.add_argument("--gpus-per-worker", type=amount, metavar="G", help="with --ray (default: 1 if the device is CUDA, else 0)")
    command.add_argument("--cpus-per-worker", type=amount, default=1.0, metavar="C", help="with --ray (default: 1)")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
