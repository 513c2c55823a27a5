"""Sizes and headings with units, as people write them."""

import re

from lrsearch.errors import ConfigError

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str, place: str) -> int:
    """Bytes in a size such as ``"128 KiB"``, ``"1.5 MB"`` or ``"4096 B"``, rounded down.

    Raises:
        ConfigError: it has no number or no known unit.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]+)\s*", text, re.ASCII)  # 18 digits: an exabyte
    factor = {unit.lower(): size for unit, size in UNITS.items()}.get(found[2].lower()) if found else None
    if not found or factor is None:
        raise ConfigError(
            f"must be a number and one of {', '.join(UNITS)}", value=repr(text), place=place, remedy="For example 128 KiB, or 5 MB.",
        )
    return int(float(found[1]) * factor)


def in_unit(heading: str, unit: str) -> str:
    """``KL, nats``; the heading alone where there is no unit."""
    return f"{heading}, {unit}" if unit else heading


def divergence_name(unit: str) -> str:
    """What a divergence in ``unit`` is called where it is shown: of probabilities, in nats, the KL divergence."""
    return "KL" if unit == "nats" else "divergence"
