"""The user's cache folder."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Where profiles, latency tables and trained examples are kept: ``$LRSEARCH_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("LRSEARCH_CACHE") or user_cache_path("lrsearch"))
