"""A tiny study, and a finished one; seeds are printed, and ``LRSEARCH_FAULTS_SEED=n`` repeats."""

import os
import random
import time

import pytest
from faulty_study import made, warm

SEED = int(os.environ.get("LRSEARCH_FAULTS_SEED") or time.time_ns() % 10**6)


@pytest.fixture
def rng(request):
    """Seeded by the test's name; the seed is shown where the test fails."""
    print(f"LRSEARCH_FAULTS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def study(tmp_path):
    return made(tmp_path / "home", tmp_path / "cache")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished study, its front, and the seconds that it took."""
    root = tmp_path_factory.mktemp("finished")
    study = made(root / "home", root / "cache")
    warm()
    started = time.monotonic()
    code, said = study.run()
    assert code == 0, said
    seconds = time.monotonic() - started
    return study, study.whole_after(study.finished()), seconds
