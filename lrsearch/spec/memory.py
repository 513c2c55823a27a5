"""How much memory may be taken by what is kept in it for speed: ``$LRSEARCH_MEMORY``, such as ``4 GiB``; 12 GiB by default.

And how much of the disk by what finds no room there while a model is profiled: ``$LRSEARCH_DISK``; 32 GiB by default.
"""

import ctypes
import os

from lrsearch.spec.units import parse_bytes

DEFAULT, DISK = "12 GiB", "32 GiB"
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def memory_share(parts: int, of: int) -> int:
    """Bytes: ``parts`` ``of``-ths of it. What finds no room is read again, computed again, or kept on disk.

    Raises:
        ConfigError: the variable is no size.
    """
    return parse_bytes(os.environ.get("LRSEARCH_MEMORY") or DEFAULT, "LRSEARCH_MEMORY") * parts // of


def disk_cap() -> int:
    """Bytes of the disk that statistics may take.

    Raises:
        ConfigError: the variable is no size.
    """
    return parse_bytes(os.environ.get("LRSEARCH_DISK") or DISK, "LRSEARCH_DISK")


def give_back() -> None:
    """Return freed memory to the system, as the C library of Linux keeps what lies between things that are still in use.

    Of ViT-B, whose layers were tried on copies that are gone, it kept nearly 2 GiB. Elsewhere this does nothing.
    """
    if _TRIM is not None:
        _TRIM(0)
