"""The user's cache folder."""

import os
from pathlib import Path

from platformdirs import user_cache_path

from lrsearch.errors import ConfigError


def cache_folder() -> Path:
    """Where profiles, latency tables and trained examples are kept: ``$LRSEARCH_CACHE``, or the user's cache folder.

    Raises:
        ConfigError: it cannot be made, or not be written.
    """
    folder, reason = Path(os.environ.get("LRSEARCH_CACHE") or user_cache_path("lrsearch")), "read-only"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        rule, remedy = "the cache folder must be one that can be written", "Set LRSEARCH_CACHE to another folder."
        raise ConfigError(rule, value=reason, place=str(folder), remedy=remedy)
    return folder
