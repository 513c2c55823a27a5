"""The low-rank formats; importing this package registers them."""

from lrsearch.compress.formats import cp, svd, tt, tucker

__all__ = ["cp", "svd", "tt", "tucker"]
