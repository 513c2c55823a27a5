"""A compressed model as a folder: ``plan.json`` and ``weights.safetensors``, nothing pickled."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from safetensors.torch import load as from_safetensors
from torch import Tensor, nn

from lrsearch.compress.inventory import layer_spec, tied_names
from lrsearch.compress.modules import CompressedLayer, Layer
from lrsearch.compress.parametrised import copied
from lrsearch.compress.prepare import prepare
from lrsearch.compress.split import join
from lrsearch.compress.storage import Storage
from lrsearch.errors import ArtifactError, ConfigError
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import Plan
from lrsearch.spec.storage import REST, ValueType, header_bytes
from lrsearch.spec.unread import drops_columns, followers, may_leave_out

PLAN, WEIGHTS, VERSION = "plan.json", "weights.safetensors", 2
_SEAL = ("version", "values", "bytes", "sha256", "layout")
READ_BY = "read_by"  # layer name → the one that reads only some of its outputs; the others are not in the file
_REMEDY = "Use a model folder that a study wrote, with the base model it was made from."


def save(model: nn.Module, plan: Plan, folder: Path, about: Mapping[str, Any], storage: Storage | None = None) -> None:
    """Write ``model`` (compressed under ``plan``) to ``folder``: whole or not at all.

    Args:
        about: JSON data kept beside the plan (where the base model comes from, scores, costs).
        storage: how values are stored; by default each in its own type.

    Raises:
        ScoreError: a value is too large for the type it is stored in.
        ArtifactError: ``folder`` is something else than a saved model.
    """
    refuse_strangers(folder)
    folder = folder.resolve()
    storage = storage or Storage(tuple(m.spec for m in model.modules() if isinstance(m, CompressedLayer)))
    weights = _serialized(storage.pack(model))
    facts = VERSION, storage.values, len(weights), hashlib.sha256(weights).hexdigest(), _print(storage, model)
    seal: dict[str, Any] = dict(zip(_SEAL, facts, strict=True))
    if unread := followers({layer.name: layer for layer in storage.layers}, plan):
        seal[READ_BY] = unread
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".writing-{uuid4().hex}"
    try:
        scratch.mkdir()  # of the user's own mode, which that of a temporary folder is not
        (scratch / WEIGHTS).write_bytes(weights)
        (scratch / PLAN).write_text(json.dumps({**about, "storage": seal, "plan": plan.to_dict()}, indent=1) + "\n")
        if folder.exists():
            os.replace(folder, aside := scratch.with_name(f"{scratch.name}-old"))
            os.replace(scratch, folder)
            remove(aside)
        else:
            os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def whole(folder: Path) -> bool:
    """Whether ``folder`` has a saved model, as it was saved."""
    try:
        read_weights(folder / WEIGHTS, read_plan(folder)[1]["storage"])
    except ArtifactError:
        return False
    return True


def refuse_strangers(folder: Path) -> None:
    """Check that a model may be saved to ``folder``: it is missing, empty, or a saved model and nothing else.

    Raises:
        ArtifactError: it may not.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _stranger(folder, "a link" if folder.is_symlink() else "a file")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others := sorted(found - {PLAN, WEIGHTS}):
        raise _stranger(folder, f"a folder with {', '.join(others[:3])}")
    if found:
        try:
            read_plan(folder)
        except ArtifactError as error:
            raise _stranger(folder, str(error.value)) from None


def _stranger(folder: Path, found: str) -> ArtifactError:
    return ArtifactError("only a saved model may be replaced", value=found, place=str(folder), remedy="Give another --out.")


def remove(folder: Path) -> None:
    """Remove the saved model in ``folder``, whole or not; what else is there stays, and so does a link."""
    if folder.is_dir() and not folder.is_symlink():
        with suppress(OSError):
            for name in (PLAN, WEIGHTS):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def _serialized(packed: Mapping[str, Tensor]) -> bytes:
    """A safetensors file whose header is as long as :func:`header_bytes` says, whatever the sizes."""
    ends, at = {}, 0
    for name, tensor in packed.items():
        ends[name] = {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [at, at + len(tensor)]}
        at += len(tensor)
    room = header_bytes(name for name in packed if name != REST) - 8
    header = json.dumps(ends, separators=(",", ":")).encode().ljust(room)
    return b"".join([room.to_bytes(8, "little"), header, *(tensor.numpy().tobytes() for tensor in packed.values())])


def _print(storage: Storage, model: nn.Module) -> str:
    return hashlib.sha256(json.dumps(storage.layout(model)).encode()).hexdigest()[:16]


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan in ``folder`` and the rest of its ``plan.json``.

    Raises:
        ArtifactError: the file is missing or damaged, or of another version.
    """
    place = str(folder / PLAN)
    try:
        about = json.loads((folder / PLAN).read_text())
        plan, seal = Plan.from_dict(about.pop("plan"), place), about.get("storage", {"version": 1})
        version, whole = seal["version"], set(_SEAL) == seal.keys() - {READ_BY} and seal["values"] in get_args(ValueType)
    except OSError as error:
        raise ArtifactError("the folder must hold a plan.json", value=error.strerror or "?", place=place, remedy=_REMEDY) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ArtifactError("plan.json must be as lrsearch wrote it", value=str(error), place=place, remedy=_REMEDY) from None
    if version != VERSION:
        remedy = "Run the study again, or use the lrsearch that wrote it."
        raise ArtifactError(f"must be a model folder of version {VERSION}", value=f"version {version}", place=place, remedy=remedy)
    if not whole:
        raise ArtifactError("plan.json must be as lrsearch wrote it", value=seal, place=place, remedy=_REMEDY)
    return plan, about


def load(folder: Path, base: nn.Module) -> nn.Module:
    """The compressed model in ``folder``; ``base``, a fresh dense model, is not changed.

    Raises:
        ArtifactError: a file is missing or damaged, or belongs to another model.
    """
    plan, about = read_plan(folder)
    base, packed = _prepared(base, about, folder), read_weights(folder / WEIGHTS, about["storage"])
    storage = _storage(packed, plan, about["storage"], base, folder)
    try:
        return storage.unpack(packed, base, plan).eval()
    except (KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            "weights must fit the plan and the base model", value=str(error), place=str(folder / WEIGHTS), remedy=_REMEDY,
        ) from None


def load_merged(folder: Path, base: nn.Module) -> nn.Module:
    """The same as a plain dense model, L + S as one weight of each layer: its ``state_dict`` is that of ``base``, with other values.

    Raises:
        ArtifactError: a file is missing or damaged, or layers of ``base`` compute their weights, so that L + S cannot be one of them.
    """
    model = load(folder, base)
    plain = copied(_prepared(base, read_plan(folder)[1], folder))
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, CompressedLayer)}
    state = {key: value for key, value in model.state_dict().items() if key in plain.state_dict()}
    plain.load_state_dict(state | {f"{name}.weight": layer.whole_weight() for name, layer in layers.items()})
    join(plain)
    kinds = {name: type(module) for name, module in plain.named_modules()}
    if other := [f"{n}: {type(m).__name__}" for n, m in base.named_modules() if kinds.get(n) is not type(m)]:
        rule = "only plain layers can hold L + S as one weight"
        raise ArtifactError(rule, value=other[0], place=str(folder), remedy="Load it without merged=True, or export it as ONNX.")
    return plain.eval()


def read_storage(folder: Path, base: nn.Module) -> Storage:
    """How the model in ``folder`` is stored.

    Raises:
        ArtifactError: a file is missing or damaged, or belongs to another model than ``base``.
    """
    plan, about = read_plan(folder)
    packed = read_weights(folder / WEIGHTS, about["storage"])
    return _storage(packed, plan, about["storage"], _prepared(base, about, folder), folder)


def _prepared(base: nn.Module, about: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        return prepare(base, about.get("split", ()))
    except (ConfigError, TypeError) as error:
        rule = "the layers it splits must be layers of the base model"
        raise ArtifactError(rule, value=str(error), place=str(folder / PLAN), remedy=_REMEDY) from None


def read_weights(path: Path, seal: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name → bytes, of a file that is what ``seal`` says.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError("the folder must hold the weights", value=error.strerror or "?", place=str(path), remedy=_REMEDY) from None
    remedy = "Copy the folder again, or run the study again."
    if len(data) != seal["bytes"]:
        raise ArtifactError("the file must be whole", value=f"{len(data)} of {seal['bytes']} bytes", place=str(path), remedy=remedy)
    if (found := hashlib.sha256(data).hexdigest()) != seal["sha256"]:
        raise ArtifactError("every byte must be as it was saved", value=f"sha256 {found[:16]}…", place=str(path), remedy=remedy)
    packed: dict[str, Tensor] = from_safetensors(data)
    return packed


def _storage(packed: Mapping[str, Tensor], plan: Plan, seal: Mapping[str, Any], base: nn.Module, folder: Path) -> Storage:
    """What the file's names and ``seal`` say of ``base``."""
    modules, names = dict(base.named_modules()), sorted(packed.keys() - {REST})
    if strangers := [name for name in names if not isinstance(modules.get(name), Layer)]:
        rule = "every layer of the file must be a layer of the base model"
        raise ArtifactError(rule, value=strangers[0], place=str(folder / WEIGHTS), remedy=_REMEDY)
    specs = {name: layer_spec(modules[name], name, tied=tied_names(base, name)) for name in names}
    for name, layer_plan in plan.layers.items():
        if reason := layer_plan.refusal(specs[name]) if name in specs else "the file has no such layer":
            rule = "every layer must be able to become what the plan says"
            raise ArtifactError(rule, value=reason, place=f"{folder / PLAN}: {name}", remedy=_REMEDY)
    unread = seal.get(READ_BY, {})
    if not isinstance(unread, dict) or not all(_may_read(specs, name, unread, plan) for name in unread):
        rule = "only outputs that another layer of the file may read alone can be left out"
        raise ArtifactError(rule, value=unread, place=str(folder / PLAN), remedy=_REMEDY)
    specs |= {name: replace(specs[name], read_by=reader) for name, reader in unread.items()}
    storage = Storage(tuple(specs.values()), seal["values"])
    if _print(storage, base) != seal["layout"]:
        rule = "the base model must have the names, shapes and types of the one that was saved"
        raise ArtifactError(rule, value=type(base).__name__, place=str(folder / PLAN), remedy=_REMEDY)
    return storage


def _may_read(specs: Mapping[str, LayerSpec], name: str, readers: Mapping[str, object], plan: Plan) -> bool:
    """Whether rows of layer ``name`` may have been left out as its reader drops columns."""
    reader = readers[name]
    if not isinstance(reader, str) or not {name, reader} <= specs.keys() or _in_circle(name, readers):
        return False
    alike = specs[name].rows == specs[reader].channels and specs[reader].groups == 1
    return alike and drops_columns(plan[reader]) and may_leave_out(specs[name], plan[name])


def _in_circle(name: str, readers: Mapping[str, object]) -> bool:
    """Whether a layer is said to read, through others, its own outputs."""
    at: object = name
    for _ in readers:
        at = readers.get(at) if isinstance(at, str) else None
    return isinstance(at, str) and at in readers
