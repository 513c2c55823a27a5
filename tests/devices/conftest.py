"""A device that no machine has, and jobs small enough to search on it in seconds."""

import pretend
import pytest
from job_fixtures import *  # noqa: F403


@pytest.fixture(autouse=True, scope="session")
def device() -> str:
    """The name of the device."""
    pretend.register()
    return pretend.NAME


@pytest.fixture(autouse=True)
def cold(monkeypatch, tmp_path):
    """No profile of another test, which may have been made on the CPU."""
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
