"""What a study is of: its configuration, model and data; a folder keeps it, beside the trials and with them."""

import hashlib
import json
from datetime import datetime
from importlib.metadata import version
from typing import Any

from lrsearch.errors import ConfigError, StudyError
from lrsearch.latency.runner import cpu
from lrsearch.spec.atomic import read_json, write_whole
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse
from lrsearch.study.storage import place_of
from lrsearch.study.stored_trials import IDENTITY, open_storage, stored_identity
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import PLANS
from lrsearch.version import __version__

Identity = dict[str, Any]
_BESIDES = "besides"  # in study.json: settings that do not tell the study from others
_CHANGES: Any = {"device": True, "recover": True, "search": {"trials", "timeout"}}  # what may change between runs
_RESTORE = "Give another --out, or restore the configuration it was made with."
_REMEDIES = {  # by the first place that differs; what goes into a profile besides model and settings is the data in their order
    "inputs.data": "Give the same examples, read without random augmentation, or another --out.",
    "inputs.profile": "Give the same model and the same examples in the same order, read without random augmentation, or another --out.",
    "inputs.computes": "Give the model that it was made with, or another --out.",
}


def claim(folder: StudyFolder, config: StudyConfig, inputs: dict[str, Any]) -> Identity:
    """Make ``folder`` this study's, or check that it is, by its own file and by what its trials say that they are of.

    What only says how long or where to run (trials, timeout, device, plugins) may change between runs, how to recover and what to
    ship, but for int8, which scores are of, and anything before the first trial.

    Args:
        inputs: digests of model and data.

    Returns:
        What tells the study from others: its configuration, and ``inputs``.

    Raises:
        StudyError: the folder belongs to another configuration, model or data, or nothing says to which, or its trials are lost.
    """
    identity = _identity(inputs, _settings(config))
    kept, old = stored_identity(folder), read_json(folder.identity)
    known = [each for each in (kept, old) if each and "fingerprint" in each]
    for each in known if kept is not None else ():
        was = _of_today(each)
        if was["fingerprint"] != identity["fingerprint"] and was != _as_before(identity):
            found = _difference(was, identity)
            remedy = next((text for place, text in _REMEDIES.items() if found.startswith(place)), _RESTORE)
            rule = "the study folder must belong to this configuration"
            raise StudyError(rule, value=found, place=str(folder.path), remedy=remedy)
    if kept is not None and not known:
        rule, name = "the trials must be known to be of this configuration", folder.identity.name
        raise StudyError(rule, value=f"no {name}", place=str(folder.path), remedy=f"Restore {name}, or give another --out.")
    if kept is None and folder.front_table.exists():
        rule = "the trials of a finished study must be there"
        raise StudyError(rule, value="none", place=str(folder.database), remedy="Restore the file, or give another --out.")
    made = old["made"] if "made" in old and old.get("fingerprint") == identity["fingerprint"] else conditions()
    if old != (whole := {**identity, _BESIDES: _besides(config), "made": made}):
        write_whole(folder.identity, json.dumps(whole, indent=1) + "\n")
    return identity


def receive(folder: StudyFolder) -> None:
    """Write the configuration of the study whose trials are elsewhere into ``folder``, as :func:`claim` does, if it has none.

    Raises:
        StudyError: there is no such study.
    """
    if folder.identity.exists():
        return
    attributes = open_storage(folder).user_attrs
    if "config" not in (kept := attributes.get(IDENTITY, {})):
        rule, remedy = "the study must have been begun", "Begin it: lrsearch search STUDY --storage URL --name NAME."
        raise StudyError(rule, value="nothing", place=str(place_of(folder)), remedy=remedy)
    write_whole(folder.identity, json.dumps({**kept, _BESIDES: {"search": {"trials": attributes[PLANS]}}}, indent=1) + "\n")


def refuse_other_study(folder: StudyFolder, config: StudyConfig) -> None:
    """Check that ``folder`` has a study of this configuration; model and data are not looked at.

    Raises:
        StudyError: it has none, or another's.
    """
    old = _settings(read_config(folder))
    if old != (mine := _settings(config)):
        raise StudyError(
            "the study folder must belong to this configuration", value=_difference(old, mine), place=str(folder.path),
            remedy="Give the same study file and --set as to lrsearch search, and the same folder.",
        )


def read_config(folder: StudyFolder) -> StudyConfig:
    """The configuration of the study in ``folder``, without what may change between runs.

    Raises:
        StudyError: it has none.
        ConfigError: it is damaged.
    """
    return parse(StudyConfig, _renamed(_kept(folder, "config")), str(folder.identity))


def kept_settings(folder: StudyFolder) -> dict[str, Any]:
    """The settings of the study in ``folder`` as its last search had them, with what may change between runs, but for ``plugins``.

    Raises:
        StudyError: it has none.
    """
    kept, more = _renamed(_kept(folder, "config")), read_json(folder.identity).get(_BESIDES)
    more = more if isinstance(more, dict) else {}
    kept = {key: value for key, value in kept.items() if key != "plugins"}
    search = {**_mapping(kept.get("search")), **_mapping(more.get("search"))}
    return {**kept, **{key: more[key] for key in ("device", "recover") if key in more}, "search": search}


def read_made(folder: StudyFolder) -> dict[str, Any]:
    """When, where and with which versions the study in ``folder`` began; empty for studies that did not keep it."""
    return _mapping(read_json(folder.identity).get("made"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def conditions() -> dict[str, str]:
    """Now, this machine, and the versions of what computes here."""
    versions = {name: version(name) for name in ("torch", "optuna")}
    return {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "cpu": cpu(), "lrsearch": __version__, **versions}


def read_inputs(folder: StudyFolder) -> dict[str, Any]:
    """The digests of model and data of the study in ``folder``.

    Raises:
        StudyError: it has none.
    """
    return _kept(folder, "inputs")


def _kept(folder: StudyFolder, key: str) -> dict[str, Any]:
    found = read_json(folder.identity).get(key)
    if not isinstance(found, dict):
        rule, value = "the folder must hold a study", f"no {folder.identity.name}"
        raise StudyError(rule, value=value, place=str(folder.path), remedy="Run lrsearch search first.")
    return found


def _identity(inputs: dict[str, Any], settings: dict[str, Any]) -> Identity:
    whole = {"inputs": inputs, "config": settings}
    return {**whole, "fingerprint": hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]}


def _of_today(identity: Identity) -> Identity:
    """``identity`` with the defaults of settings that came later, and today's names of those that were renamed."""
    try:
        return _identity(identity["inputs"], _settings(parse(StudyConfig, _renamed(identity["config"]), "study")))
    except (ConfigError, KeyError):
        return identity


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    return {"weights" if key == "storage" else key: value for key, value in config.items()}


def _as_before(identity: Identity) -> Identity:
    """``identity`` as it was when studies did not keep what the model computes, but its values alone."""
    return _identity({k: v for k, v in identity["inputs"].items() if k != "computes"}, identity["config"])


def _settings(config: StudyConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={**_CHANGES, "plugins": True})
    if not config.proxy.finetune.steps:
        settings["proxy"]["finetune"] = {"steps": 0}  # how it would be done does not matter then
    return {**settings, "deploy": {"precision": "int8" if config.deploy.precision == "int8" else "float32"}}


def _besides(config: StudyConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json", include=_CHANGES)
    return settings


def _difference(old: Any, new: Any, place: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            if key != "fingerprint" and old.get(key) != new[key]:
                return _difference(old.get(key), new[key], f"{place}.{key}".strip("."))
    return f"{place} was {old!r}, is {new!r}"
