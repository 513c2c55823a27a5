"""How much memory may be taken by what is kept in it for speed: ``$LRSEARCH_MEMORY``, such as ``4 GiB``; 12 GiB by default."""

import os

from lrsearch.spec.units import parse_bytes

DEFAULT = "12 GiB"


def memory_share(parts: int, of: int) -> int:
    """Bytes: ``parts`` ``of``-ths of it. What finds no room is read again, computed again, or kept on disk.

    Raises:
        ConfigError: the variable is no size.
    """
    return parse_bytes(os.environ.get("LRSEARCH_MEMORY") or DEFAULT, "LRSEARCH_MEMORY") * parts // of
