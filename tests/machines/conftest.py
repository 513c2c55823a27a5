"""A database for the tests of one module, and a study in it for each."""

from uuid import uuid4

import pytest
from job_fixtures import *  # noqa: F403
from servers import MISSING, postgres


@pytest.fixture(scope="session")
def server():
    """PostgreSQL on loopback."""
    if MISSING:
        pytest.skip(MISSING)
    pytest.importorskip("psycopg", reason="needs the driver: pip install 'lrsearch[postgresql]'")
    with postgres() as running:
        yield running


@pytest.fixture
def shared(job, server):
    """``job`` with its trials in the database, as a study of its own."""
    return {**job, "storage": server.url, "name": f"study-{uuid4().hex[:8]}"}
