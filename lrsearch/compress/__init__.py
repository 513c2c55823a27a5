"""Weights → smaller weights."""

from lrsearch.compress import formats as formats
