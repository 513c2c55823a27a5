"""Batches of the tiny data."""

import pytest


@pytest.fixture
def parts(tiny_data):
    """Batches to fit to, and batches to check with."""
    return tiny_data[0][:100].split(50), tiny_data[0][100:].split(30)
