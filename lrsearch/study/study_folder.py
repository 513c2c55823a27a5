"""StudyFolder: the one owner of a study on disk; no other module knows what its files are called.

A study is made by lrsearch and marked. In any other folder nothing is written and nothing removed. The mark, ``lrsearch-study.json``,
names the schema. Schema 1 had no seals, and folders of before the mark are known by their ``study.json``: both become schema 2.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lrsearch.errors import StudyError
from lrsearch.spec.atomic import WRITING, read_json, read_sealed, write_json, write_whole
from lrsearch.spec.blobs import BlobStore, LocalStore

SCHEMA = 2  # version of a study folder, see above
WORKER_NAME = re.compile(r"[0-9a-f]{32}")
_MARK, _DOOR = "lrsearch-study.json", "study.lock"
_SCRATCH = rf"\.?{re.escape(WRITING)}.*"
_PREPARED = re.compile(
    rf"({re.escape(_MARK)}|study\.json|latency(_late)?\.json|space\.json|storage\.json)({_SCRATCH})?|study\.(lock|writing)|turn\.(lock|json.*)|search\.log",
)
_WRITTEN = re.compile(
    r"(lrsearch-study|study|front|report|latency|latency_front|latency_late|space|storage|fidelity|recovering-\d+)\..*"
    r"|turn\.(lock|json.*)|search\.log|workers|models|seals|(seals/)?(paused|losses)(/\d{4,}\D.*)?",
)
_MODEL = re.compile(r"\d{4,}|\.writing-\w+(-old)?")  # what a search makes among the models, the second while it is written
_RECOVERED = "recovered-"


@dataclass(frozen=True)
class StudyFolder:
    """A study on disk.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def database(self) -> Path:
        """The Optuna storage, in SQLite: all of the search's state."""
        return self.path / "study.db"

    @property
    def pointer(self) -> Path:
        """Where the trials and the large files are, if elsewhere."""
        return self.path / "storage.json"

    @property
    def elsewhere(self) -> dict[str, Any]:
        """What it says: ``url`` without secrets, and ``study``; ``artifacts``.

        Raises:
            StudyError: it is damaged.
        """
        return self.sealed(self.pointer, "Remove it, and give --storage and --artifacts again.")

    @property
    def begun(self) -> bool:
        """Whether it may have trials, here or elsewhere."""
        return self.database.exists() or (self.pointer.exists() and self.identity.exists())

    @property
    def identity(self) -> Path:
        """The configuration, and digests of model and data."""
        return self.path / "study.json"

    @property
    def space(self) -> Path:
        """The search space with its damage and costs, for questions without the model."""
        return self.path / "space.json"

    @property
    def latency(self) -> Path:
        """The latency table."""
        return self.path / "latency.json"

    @property
    def measured_front(self) -> Path:
        """What whole models of the front took."""
        return self.path / "latency_front.json"

    @property
    def lateness(self) -> Path:
        """By how much whole models are later than the table says."""
        return self.path / "latency_late.json"

    @property
    def fidelity(self) -> Path:
        """Scores of a few plans at every rung and at length."""
        return self.path / "fidelity.json"

    @property
    def fidelity_page(self) -> Path:
        """The same as a figure."""
        return self.path / "fidelity.html"

    @property
    def log(self) -> Path:
        """What the package logged."""
        return self.path / "search.log"

    @property
    def front_table(self) -> Path:
        """The front as text; its rows are what ``--index`` means."""
        return self.path / "front.csv"

    @property
    def front_columns(self) -> Path:
        """The front for other programs; lrsearch never reads it."""
        return self.path / "front.parquet"

    @property
    def page(self) -> Path:
        """The report: all that the study found, as a page."""
        return self.path / "report.html"

    @property
    def exported(self) -> Path:
        """Where a member of the front is exported to, unless told otherwise."""
        return self.path / "export"

    @property
    def workers(self) -> Path:
        """A locked file for each worker."""
        return self.path / "workers"

    @property
    def turn(self) -> Path:
        """Locked by the worker that decides or stores."""
        return self.path / "turn.lock"

    @property
    def turn_holder(self) -> Path:
        """Which worker that is."""
        return self.path / "turn.json"

    @property
    def door(self) -> Path:
        """Locked by who joins, or by who needs the study for itself."""
        return self.path / _DOOR

    @property
    def models(self) -> Path:
        """A folder for each model of the front, and for each that was recovered."""
        return self.path / "models"

    def recovery(self, model: str) -> Path:
        """The state of an unfinished recovery of ``model``, a name as :meth:`model_name` makes it."""
        return self.path / f"recovering-{Path(model).name}.pt"

    @staticmethod
    def model_name(number: int) -> str:
        """Where the model of the plan whose first trial is ``number`` is kept, below the study folder."""
        return f"models/{number:04d}"

    @staticmethod
    def recovered_name(model: str) -> str:
        """The same of the recovered form of ``model``."""
        return f"models/{_RECOVERED}{Path(model).name}"

    def recovered_models(self) -> list[str]:
        """The names of the recovered models that are there."""
        return [f"models/{path.name}" for path in sorted(self.models.glob(f"{_RECOVERED}*"))]

    def searched_models(self) -> list[Path]:
        """The models that a search made, whole or half written; what else is beside them is not ours."""
        return [path for path in self.models.glob("*") if _MODEL.fullmatch(path.name)]

    @cached_property
    def blobs(self) -> BlobStore:
        """Losses and paused finetunes by name; see :meth:`losses_name` and :meth:`finetune_name`. Where other machines are to have them,
        the models too."""
        return self._stored(LocalStore(self.path), str(self.elsewhere.get("study", "study")))

    def constant_blobs(self, folder: Path, name: str) -> BlobStore:
        """Blobs that never change, of whichever study, in ``folder`` of this machine; for other machines as ``name``."""
        return self._stored(LocalStore(folder), name, constant=True)

    def _stored(self, local: LocalStore, name: str, constant: bool = False) -> BlobStore:
        if not (place := self.elsewhere.get("artifacts")):
            return local
        from lrsearch.study.artifacts import SharedBlobs  # heavy: few commands need it

        return SharedBlobs(local, str(place), name, constant)

    @property
    def shares(self) -> bool:
        """Whether other machines are to have its large files."""
        return "artifacts" in self.elsewhere

    @cached_property
    def needs_trials(self) -> bool:
        """Whether other machines have its trials alone, which then say all that decisions are made by."""
        return "url" in self.elsewhere and not self.shares

    def share_file(self, path: Path) -> None:
        """Let other machines have one of the study's JSON files."""
        if self.shares:
            self.blobs.put(f"files/{path.name}", path.read_bytes())

    def fetch_file(self, path: Path) -> None:
        """Get it as another machine shared it last, if one did."""
        if self.shares and (data := self.blobs.get(f"files/{path.name}")) is not None:
            write_whole(path, data)

    def share(self, model: str) -> None:
        """Let other machines have ``model``, a name as :meth:`model_name` makes it."""
        for path in sorted((self.path / model).iterdir()) if self.shares else ():
            self.blobs.put(f"{model}/{path.name}", path.read_bytes())

    def fetch(self, model: str) -> None:
        """Get ``model``, if another machine has it; whether it is whole is to be seen."""
        for name in self.blobs.list(f"{model}/") if self.shares else ():
            if (data := self.blobs.get(name)) is not None:
                (self.path / model).mkdir(parents=True, exist_ok=True)
                write_whole(self.path / name, data)

    def shared_models(self) -> list[tuple[str, int]]:
        """Names and numbers of what other machines can have of models."""
        names = self.blobs.list("models/") if self.shares else []
        found = [(name, re.fullmatch(r"models/(\d{4,})/.*", name)) for name in names]
        return [(name, int(match[1])) for name, match in found if match]

    @staticmethod
    def losses_name(number: int, rung: int) -> str:
        """The blob of what plan ``number`` lost on each example at ``rung``."""
        return f"losses/{number:04d}-{rung}.f16"

    @staticmethod
    def finetune_name(number: int) -> str:
        """The blob of the paused finetune of plan ``number``."""
        return f"paused/{number:04d}.pt"

    def finetunes(self) -> list[tuple[str, int]]:
        """Names and plans of the paused finetunes, also of those half written; what is not a plan's is not ours."""
        found = [(name, re.fullmatch(r"paused/(\d{4,})\.(pt|writing).*", name)) for name in self.blobs.list("paused/")]
        return [(name, int(match[1])) for name, match in found if match]

    def sealed(self, path: Path, remedy: str) -> dict[str, Any]:
        """The mapping in one of the study's JSON files; empty if there is no file.

        Raises:
            StudyError: it is damaged.
        """
        try:
            return read_sealed(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StudyError("must be as lrsearch wrote it", value=str(error), place=str(path), remedy=remedy) from None

    def save(self, path: Path, data: dict[str, Any]) -> None:
        """Write one of the study's JSON files, sealed."""
        write_json(path, data)

    def refuse_foreign(self) -> None:
        """Check that this is a study, or may become one: missing, or empty.

        Raises:
            StudyError: it holds what lrsearch did not make, is of another schema, or has a link where the study writes.
            OSError: it cannot be read.
        """
        if not self.path.is_dir():
            return
        marked = self.schema
        if marked is not None and marked not in range(1, SCHEMA + 1):
            rule, remedy = f"the study folder must be of schema {SCHEMA} or older", "Use the lrsearch that made it, or give another --out."
            raise StudyError(rule, value=f"schema {marked}", place=str(self.path), remedy=remedy)
        foreign = sorted(p.name for p in self.path.iterdir() if p.name != _DOOR and not p.name.startswith(f"{_MARK}{WRITING}"))
        if foreign and marked is None and not {"inputs", "config", "fingerprint"} <= read_json(self.identity).keys():
            raise StudyError(
                "must be a study that lrsearch made, or an empty folder", value=f"a folder with {', '.join(foreign[:3])}",
                place=str(self.path), remedy="Give another --out.",
            )
        parts = [self.path / part for part in ("", "paused", "losses", "seals", "seals/paused", "seals/losses")]
        for path in (p for part in parts if part.is_dir() for p in part.iterdir()):
            if path.is_symlink() and _WRITTEN.fullmatch(path.relative_to(self.path).as_posix()):
                raise StudyError("a study writes to no links", value="a link", place=str(path), remedy="Remove it, or give another --out.")

    @property
    def schema(self) -> Any:
        """That of the mark, or None."""
        return read_json(self.path / _MARK).get("schema")

    def mark(self) -> None:
        """Mark the folder as a study of this schema; what an older one did not seal is sealed as it is."""
        if self.schema != SCHEMA:
            local = LocalStore(self.path)
            local.adopt(name for part in ("losses/", "paused/") for name in local.list(part))
            write_whole(self.path / _MARK, json.dumps({"schema": SCHEMA}) + "\n")

    def forget_scratch(self) -> None:
        """Remove what killed processes left half written; while no other works here."""
        for path in (p for part in ("", "seals/paused", "seals/losses", "losses") for p in (self.path / part).glob(f"*{WRITING}-*")):
            if path.is_file():
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what a study wrote that was refused before its first trial; nothing, if anything else is here."""
        files = [path for path in self.path.iterdir() if path != self.workers]
        names = list(self.workers.iterdir()) if self.workers.is_dir() else []
        if all(_PREPARED.fullmatch(p.name) for p in files) and all(WORKER_NAME.fullmatch(p.name) for p in names):
            for path in (*names, *files):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                self.workers.rmdir()
