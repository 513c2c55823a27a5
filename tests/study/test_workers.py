import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from jobs import FINETUNED, Notes, searching, states, stored
from optuna.trial import TrialState

import lrsearch
from lrsearch.errors import StudyError
from lrsearch.study import loop as study_module
from lrsearch.study.workers import Workers, alone, working

HOLD = """
import sys, pathlib
from lrsearch.study.workers import working
with working(pathlib.Path(sys.argv[1])) as workers:
    print(workers.name, flush=True)
    input()
"""


def test_a_worker_is_alive_until_it_leaves(tmp_path):
    own = Workers(tmp_path)
    with working(tmp_path) as first, working(tmp_path) as second:
        assert own.alive(first.name)
        assert sorted(own.others) == sorted([first.name, second.name])
        assert first.others == [second.name]
    assert not own.alive(first.name)
    assert own.others == []
    assert own.alive(own.name)
    assert not own.alive(None)


def test_a_worker_that_was_killed_is_not_alive(tmp_path):
    own = Workers(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        assert own.alive(name)
        process.kill()
        process.wait()
    assert not own.alive(name)
    assert (tmp_path / "workers" / name).exists()
    with working(tmp_path):
        assert not (tmp_path / "workers" / name).exists()


def test_who_is_alone_is_alone(tmp_path):
    with alone(tmp_path):
        for other in (alone, working):
            with pytest.raises(StudyError, match=r"only searches may use .* at the same time; got in use"), other(tmp_path):
                pass
    with working(tmp_path), pytest.raises(StudyError, match="in use"), alone(tmp_path):
        pass
    with alone(tmp_path), pytest.raises(ZeroDivisionError), alone(tmp_path / "other"):
        raise ZeroDivisionError
    with alone(tmp_path / "other"):
        pass


def beside(job, calls):
    """The results of two searches of ``job`` that were both evaluating something when they began."""
    both = threading.Barrier(2)
    calls.fail = lambda count: both.wait(300) if count <= 2 else None
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: lrsearch.search(**job), range(2)))


@pytest.mark.parametrize("settings", [{}, FINETUNED], ids=["fitted", "finetuned"])
def test_two_searches_share_a_study(job, calls, settings):
    job = {**job, **settings}
    first, second = beside(job, calls)
    trials, done = first.trials, stored(job["out"]).get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert trials.equals(second.trials)
    assert (trials.source == "search").sum() == job["search"]["trials"]
    assert len({t.user_attrs["worker"] for t in done}) == 2
    assert set(states(job["out"])) <= {"COMPLETE", "PRUNED"}
    rungs = [(t.user_attrs["continues"], t.user_attrs["rung"]) for t in done if "continues" in t.user_attrs]
    assert len(set(rungs)) == len(rungs)
    assert bool(rungs) == bool(settings)
    assert {f"models/{p.name}" for p in (job["out"] / "models").iterdir()} == set(first.front.model)
    assert not list((job["out"] / "paused").glob("*"))
    calls.clear()
    calls.fail = pytest.fail
    assert lrsearch.search(**job).trials.equals(trials)


def test_a_plan_that_two_scored_at_the_same_time_counts_once(job, result, calls):
    """The same plan queued twice, which no proposal does, but controls do that come to the same."""
    study = stored(job["out"])
    fresh = lrsearch.ask(job["out"], lrsearch.Budget(params=0.4)).untried.parameters
    for _ in range(2):
        study.enqueue_trial(fresh)
    first, _ = beside(searching(job, trials=5), calls)
    assert len(calls) == 2
    assert len(first.trials) == len(result.trials) + 2
    assert first.front.trial.is_unique
    assert first.trials.divergence[-2:].nunique() == first.trials.model[-2:].nunique() == 1


@pytest.fixture
def other(job, result):
    """Another worker with a plan of the search."""
    workers, study = Workers(job["out"]), stored(job["out"])
    workers.join()
    trial = study.ask(study.get_trials()[-1].distributions)
    trial.set_user_attr("worker", workers.name)
    yield workers, trial
    workers.leave()


@pytest.fixture
def files(job, other):
    """What the other worker has on disk of its plan: a model, one half written, and a finetune."""
    name = f"{other[1].number:04d}"
    models = [job["out"] / "models" / name, job["out"] / "models" / ".writing-x"]
    for path in models:
        path.mkdir(parents=True)
    paused = job["out"] / "paused" / f"{name}.pt"
    paused.parent.mkdir()
    paused.touch()
    return [*models, paused]


def test_what_another_worker_is_at_is_left_to_it_until_it_is_gone(job, calls, other, files, monkeypatch):
    workers, trial = other
    seen, before = [], len(calls)

    def sleep(_):
        seen.append((stored(job["out"]).get_trials()[trial.number].state, [p.exists() for p in files], len(calls) - before))
        workers.leave()

    monkeypatch.setattr(study_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    found = lrsearch.search(**searching(job, trials=5))
    assert seen == [(TrialState.RUNNING, [True] * 3, 1)]
    assert [p.exists() for p in files] == [False] * 3
    assert (found.trials.source == "search").sum() == 5
    again = [t for t in stored(job["out"]).get_trials() if t.params == trial.params]
    assert [t.state for t in again] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_search_that_joins_says_so(job, result, other):
    stored(job["out"]).tell(other[1].number, state=TrialState.FAIL)
    told = Notes()
    lrsearch.search(**job, progress=told)
    assert told.notes[0] == "another search works on this study; this one joins it"
