"""Certificate: what an exported model was found to be, with what could not be checked, as JSON and as a table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrsearch.errors import ArtifactError
from lrsearch.spec.atomic import write_whole
from lrsearch.spec.config import Precision, StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.spec.score import renamed

CERTIFICATE, CERTIFICATE_TABLE, ONNX = "certificate.json", "certificate.md", "model.onnx"
_REMEDY = "Export the model again: lrsearch export."


@dataclass(frozen=True)
class Origin:
    """Where an exported model comes from: all that is needed to check it again.

    Attributes:
        config: of the study.
        files: name → sha256 of the other files in the folder.
        dense: digest of the dense model.
        data: fingerprint of the study's score data.
        inputs: what one example's inputs look like; see :mod:`lrsearch.task.sample`.
        model: which of the study's models it is, such as ``models/0012``; empty if it is not known.
        cpu: the processor that the study's latencies are of; empty if it has none.
        pick: the conditions by which it was chosen.
        refused: models that would have come first, and what they missed.
        precision: of ``model.onnx``; the study's limits are in that of ``config``.
        scored: ``divergence`` and ``metric`` of that file when it was exported, where its precision is lower than float32.
    """

    config: StudyConfig
    files: Mapping[str, str] = field(default_factory=dict)
    dense: str = ""
    data: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    cpu: str = ""
    pick: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = "float32"
    scored: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "config": self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class Check:
    """Something found, beside what it was to be.

    Attributes:
        rule: ``equal``, ``at most``, ``at least``, or ``within`` a tolerance.
        margin: what is left up to a limit, as a share of it; for ``within``, of the tolerance.
    """

    name: str
    found: float
    rule: str
    wanted: float
    passed: bool
    margin: float | None = None

    def missed(self) -> str:
        """For example ``budget latency_ms: 5.31, to be at most 5 (missed by 6.2 %)``."""
        by = f" (missed by {-self.margin:.1%})" if self.margin is not None and self.margin < 0 else ""
        return f"{self.name}: {shown(self.found)}, to be {self.rule} {shown(self.wanted)}{by}"


@dataclass(frozen=True)
class Certificate:
    """What one verification found.

    Attributes:
        checks: passed or failed.
        figures: all that was counted or measured.
        unchecked: what could not be checked here → why.
        conditions: versions, processor, threads, date.
    """

    origin: Origin
    checks: tuple[Check, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    unchecked: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there were checks, and none failed."""
        return bool(self.checks) and not self.failures

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        """As in ``certificate.json``."""
        return {
            "passed": self.passed, "checks": [asdict(c) for c in self.checks], "unchecked": self.unchecked,
            "figures": self.figures, "conditions": self.conditions, "origin": self.origin.to_dict(),
        }

    def save(self, folder: Path) -> None:
        """``certificate.json`` and ``certificate.md``."""
        write_whole(folder / CERTIFICATE, json.dumps(self.to_dict(), indent=1) + "\n")
        write_whole(folder / CERTIFICATE_TABLE, self.markdown())

    @classmethod
    def load(cls, folder: Path) -> "Certificate":
        """Inverse of :meth:`save`.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        path = folder / CERTIFICATE
        try:
            data = json.loads(path.read_text())
            origin = {**data["origin"], "config": parse(StudyConfig, data["origin"]["config"], str(path))}
            origin["scored"] = renamed(origin.get("scored", {}))
            if "shape" in origin:  # as certificates were before inputs could be more than one tensor
                origin["inputs"] = {"shape": origin.pop("shape"), "dtype": origin.pop("dtype")}
            checks = tuple(Check(**c) for c in data["checks"])
            return cls(Origin(**origin), checks, renamed(data["figures"]), data["unchecked"], data["conditions"])
        except OSError as error:
            raise ArtifactError(
                "the folder must hold a certificate", value=error.strerror or "?", place=str(path),
                remedy="Give a folder that lrsearch export wrote, or call lrsearch.verify(folder, model=…, score=…).",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError("must be as lrsearch wrote it", value=repr(error), place=str(path), remedy=_REMEDY) from None

    def __repr__(self) -> str:
        passed = len(self.checks) - len(self.failures)
        return f"Certificate of {self.origin.config.name}: {passed} of {len(self.checks)} checks passed, {len(self.unchecked)} not checked"

    def _repr_markdown_(self) -> str:
        return f"###{self.markdown()}"  # its headline is one of many in a notebook

    def markdown(self) -> str:
        """The tables that a person reads."""
        whole = "passed as far as it was checked" if self.unchecked else "passed"
        verdict = whole if self.passed else "FAILED"
        left = f", {len(self.unchecked)} not checked" if self.unchecked else ""
        lines = [
            f"# {self.origin.config.name}: {verdict}", "",
            f"{len(self.checks) - len(self.failures)} of {len(self.checks)} checks passed{left}.", "",
            "| check | found | to be | margin | |", "|---|---:|---:|---:|---|",
            *(f"| {c.name} | {shown(c.found)} | {c.rule} {shown(c.wanted)} | {_percent(c.margin)} | {_verdict(c)} |" for c in self.checks),
            *(f"| {name} | | | | not checked: {_cell(why)} |" for name, why in self.unchecked.items()), "",
            "| figure | value |", "|---|---:|", *(f"| {name} | {shown(value)} |" for name, value in self.figures.items()), "",
            *([f"- model: {_cell(str(self.origin.model))}"] if self.origin.model else []),
            *(f"- refused before it: {_cell(model)}: {_cell(why)}" for model, why in self.origin.refused.items()),
            *(f"- {_cell(name)}: {_cell(str(value))}" for name, value in self.conditions.items()),
        ]
        return "\n".join(lines) + "\n"


def _verdict(check: Check) -> str:
    return "pass" if check.passed else "**FAIL**"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def shown(value: float) -> str:
    """A whole number in groups of three digits, any other to five digits."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.5g}"
