"""Workers that Ray places on two nodes, one of which is lost."""

import sys
import threading
import time

import pytest
from nodes import ENVIRONMENT, slow_study, two_nodes
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from lrsearch.cli.main import main
from lrsearch.study.storage import Place, opened, read_url, study_in

pytestmark = pytest.mark.machines


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a study of a slow model, whose workers count as dead after seconds."""
    slow_study(tmp_path, trials=12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    for name in ("impatient", "zoo"):
        sys.modules.pop(name, None)


@pytest.fixture
def cluster(home):
    """Two nodes with room for one worker each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'lrsearch[ray]'")
    with two_nodes() as made:
        yield made


def trials(shared):
    """Of the study; none before it begins."""
    place = Place(read_url(shared["storage"]), shared["name"])
    study = study_in(opened(place), place)
    return study.get_trials(deepcopy=False) if study else []


def begun(shared):
    return {t.user_attrs["worker"] for t in trials(shared) if "worker" in t.user_attrs}


def test_a_search_outlives_a_node(home, cluster, shared, capsys, monkeypatch):
    def lose():
        while len(begun(shared)) < 2:
            time.sleep(0.2)
        cluster.remove_node(cluster.second, allow_graceful=False)

    where = ["--storage", shared["storage"], "--name", shared["name"], "--artifacts", "blobs"]
    losing = threading.Thread(target=lose)
    losing.start()
    assert main(["search", "tiny.yaml", *where, "--ray", cluster.address, "--workers", "2"]) == 0
    losing.join()
    said = capsys.readouterr().out
    done = [t for t in trials(shared) if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and "continues" not in t.user_attrs]
    assert sum(t.user_attrs.get("source", "search") == "search" for t in done) == 12
    assert not [t for t in trials(shared) if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert "was lost, and is started again" in said
    assert len(begun(shared)) >= 2
    assert make_url(shared["storage"]).password not in said


def test_no_cluster_is_one_line(home, shared, capsys):
    pytest.importorskip("ray", reason="needs Ray: pip install 'lrsearch[ray]'")
    assert main(["search", "tiny.yaml", "--storage", shared["storage"], "--ray", "127.0.0.1:1"]) == 2
    assert "must be a Ray cluster" in capsys.readouterr().err
