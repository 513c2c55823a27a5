"""Who has the turn, who lives, and what comes of it when a connection, a worker or the database is gone for a while."""

import threading
import time
from types import SimpleNamespace

import optuna
import pytest
from jobs import Notes, interrupt
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError, PendingRollbackError

import lrsearch
from lrsearch.search.records import Record
from lrsearch.spec.cost import Cost
from lrsearch.spec.plan import Plan
from lrsearch.spec.score import Score
from lrsearch.study import storage, trials, turns
from lrsearch.study.storage import settle
from lrsearch.study.stored_trials import open_storage
from lrsearch.study.study_folder import StudyFolder
from lrsearch.study.trials import TrialStore
from lrsearch.study.turns import TurnLost
from lrsearch.study.workers import Workers

pytestmark = pytest.mark.machines


@pytest.fixture
def folder(shared, tmp_path):
    """A folder whose study is in the database; it has no trials yet."""
    found = StudyFolder(tmp_path / "here")
    found.path.mkdir()
    settle(found, shared["storage"], shared["name"], None)
    return found


@pytest.fixture
def workers(folder):
    """Makes workers, which all leave in the end."""
    made = []

    def make(note=print):
        made.append(Workers(folder.path, note))
        return made[-1]

    yield make
    for each in made:
        each.heart.stop()
        each.turn.close()


@pytest.fixture
def store(folder, workers):
    """Makes the trials of a study whose plans have one parameter, as another worker sees them."""
    proposals = SimpleNamespace(space={"x": FloatDistribution(0, 1)}, sampler=optuna.samplers.RandomSampler)

    def make():
        each = workers()
        return each.turn.do(lambda: TrialStore(folder, ("divergence", "params"), proposals, each))

    return make


def test_what_another_has_is_not_free(workers):
    one, other = workers(), workers()
    with one.free("abc", 2) as first, other.free("abc", 2) as second, other.free("ab", 2) as none:
        assert (first, second, none) == (["a", "b"], ["c"], [])
    with other.free("abc", 3) as again:
        assert again == ["a", "b", "c"]


def test_who_waits_for_one_thing_has_it_when_it_is_let_go(workers):
    one, other, had = workers(), workers(), []

    def wait():
        with other.sole("a"):
            had.append("a")

    waiting = threading.Thread(target=wait)
    with one.free("ab", 2):
        waiting.start()
        waiting.join(0.5)
        assert had == []
    waiting.join(60)
    assert had == ["a"]


def ask(store):
    return store.workers.turn.do(store.ask)


def finish(store, trial):
    record = Record(trial.number, "search", Plan(), Cost(10), (Score(0.5, 1.0, 0.1, 0, False),), True, "models/0000")
    return store.workers.turn.do(lambda: store.finish(trial, record))


def looks(store):
    """Look for dead workers again."""
    store.workers.heart._looked = -float("inf")
    return store.workers.turn.do(store.give_up)


def silent(server, trial):
    server.sql(f"UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour' WHERE trial_id = {trial._trial_id}")


def test_a_trial_is_a_workers_until_it_was_not_heard_of_for_too_long(store, server):
    slow, other = store(), store()
    trial = ask(slow)
    assert not looks(other)
    silent(server, trial)
    assert looks(other)
    again = ask(other)
    assert again.params == trial.params
    assert (finish(slow, trial), finish(other, again), finish(other, again)) == (False, True, True)
    assert [t.state for t in slow.study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    slow.begin(trial, Plan())
    assert slow.workers.turn.do(lambda: slow.fail(trial, "why")) is False


def test_a_trial_takes_few_statements_and_is_what_optuna_would_have_stored(store, monkeypatch):
    one, other, said, ends = store(), store(), [], []
    event.listen(one.workers.turn.storage.engine, "before_cursor_execute", lambda *call: said.append(call[2]))
    monkeypatch.setattr(optuna.samplers.RandomSampler, "after_trial", lambda *call: ends.append(call[2:]))
    for _ in range(2):
        said.clear()
        trial = ask(one)
        one.begin(trial, Plan())
        finish(one, trial)
    assert len(said) <= 33, said
    found = other.study.get_trials()
    assert [(t.number, t.state.name, t.values) for t in found] == [(n, "COMPLETE", [1.0, 10.0]) for n in (0, 1)]
    assert found[1].params == trial.params
    assert found[1].distributions == one.proposals.space
    assert {"plan", "worker", "cost", "scores", "model"} <= found[1].user_attrs.keys()
    assert [(t.number, *rest) for t, *rest in ends] == [(n, TrialState.COMPLETE, [1.0, 10.0]) for n in (0, 1)]


def test_another_release_of_optuna_stores_the_same_by_itself(store, monkeypatch):
    few = store()
    monkeypatch.setattr(trials, "FEW", ("0.",))
    own = store()
    assert few._few is not None
    assert own._few is None
    for one in (few, own):
        trial = ask(one)
        one.begin(trial, Plan())
        finish(one, trial)
    first, second = few.study.get_trials()
    assert first.user_attrs.keys() == second.user_attrs.keys()
    assert (first.values, first.state) == (second.values, second.state)


def test_attributes_of_a_trial_are_written_over_and_not_after_its_end(store):
    one = store()
    trial = ask(one)
    for value in (1, [2]):
        one._few.set_trial_user_attrs(trial._trial_id, {"a": value, "b": 3})
    finish(one, trial)
    assert {k: one.study.get_trials()[0].user_attrs[k] for k in "ab"} == {"a": [2], "b": 3}
    with pytest.raises(UpdateFinishedTrialError):
        one._few.set_trial_user_attrs(trial._trial_id, {"a": 4})


def test_a_trial_is_handed_back_by_a_worker_that_ends(store):
    one, other = store(), store()
    trial = ask(one)
    for _ in range(4):
        one.begin(trial, Plan())
        one.hand_back(interrupted=True)
        assert one.workers.heart._trial is None
        again = ask(other)
        assert (again.number, again.params) == (trial.number + 1, trial.params)
        one, other, trial = other, one, again
    other.hand_back(interrupted=True)  # has none
    assert finish(one, again)
    assert [t.state.name for t in one.study.get_trials()] == ["FAIL"] * 4 + ["COMPLETE"]


def test_a_trial_that_was_given_up_or_finished_is_not_handed_back(store, server):
    one, other = store(), store()
    trial = ask(one)
    silent(server, trial)
    assert looks(other)
    again = ask(other)
    one.hand_back(interrupted=True)
    assert finish(other, again)
    other._own = again  # interrupted right after it was stored
    other.hand_back(interrupted=True)
    assert [t.state.name for t in one.study.get_trials()] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("at", [1, 4], ids=["a control", "a plan"])
def test_others_need_not_wait_for_a_worker_that_is_interrupted(shared, calls, tmp_path, at):
    calls.fail = lambda count: interrupt() if count == at else None
    with pytest.raises(KeyboardInterrupt):
        lrsearch.search(**{**shared, "out": tmp_path / "a"})
    found = open_storage(StudyFolder(tmp_path / "a")).get_trials()
    assert not [t for t in found if t.state == TrialState.RUNNING]
    (given_up,) = [t for t in found if t.state == TrialState.FAIL]
    assert "reason" not in given_up.user_attrs
    result = lrsearch.search(**{**shared, "out": tmp_path / "b"})
    assert (result.trials.source == "search").sum() == shared["search"]["trials"]
    assert [t.state for t in open_storage(StudyFolder(tmp_path / "b")).get_trials()].count(TrialState.FAIL) == 1


def test_a_plan_that_its_workers_die_of_is_tried_three_times(store, server):
    one = store()
    for _ in range(3):
        silent(server, ask(one))
        assert looks(one)
    assert [t.state.name for t in one.study.get_trials()] == ["FAIL"] * 3
    assert one.study.get_trials()[-1].user_attrs["reason"] == "its worker died 3 times"


def test_a_worker_that_died_before_its_first_heartbeat_is_seen_in_the_next_turn(store):
    one = store()
    one.study.ask(one.proposals.space)
    assert looks(one)
    assert one.study.get_trials()[0].state == TrialState.FAIL


def test_a_heart_beats_for_its_trial(store, server, monkeypatch):
    monkeypatch.setattr(storage, "INTERVAL", 1)
    one, other = store(), store()
    one.workers.heart.start()
    silent(server, ask(one))
    time.sleep(3)
    assert not looks(other)


def test_one_worker_has_the_turn_at_a_time(workers):
    inside, most, counted = [], [], []

    def work():
        own = workers()
        for _ in range(20):
            with own.turn, own.turn:
                inside.append(1)
                most.append(len(inside))
                counted.append(1)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(counted)) == (1, 80)


def cut(server, worker):
    """Cut the connections of ``worker``."""
    server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'worker {worker.name}'")


def test_who_loses_the_connection_loses_the_turn_and_does_it_again(store, server):
    one, seen = store(), []

    def change():
        one.study.set_user_attr("before", 1)
        if not seen:
            cut(server, one.workers)
        seen.append(1)
        one.study.set_user_attr("after", len(seen))
        return "done"

    assert one.workers.turn.do(change) == "done"
    assert (len(seen), one.study.user_attrs["after"]) == (2, 2)
    with one.workers.turn, pytest.raises((TurnLost, optuna.exceptions.StorageInternalError)):  # noqa: PT012
        cut(server, one.workers)
        one.study.set_user_attr("x", 1)
    cut(server, one.workers)
    one._trials()


def test_a_new_connection_in_a_turn_is_refused(store):
    one = store()
    with one.workers.turn:
        one.workers.turn.storage.engine.dispose()
        with pytest.raises(TurnLost):
            one.study.get_trials()


def test_a_holder_that_is_not_heard_of_loses_its_turn(store, monkeypatch):
    monkeypatch.setattr(turns, "GRACE", 1)
    monkeypatch.setitem(storage._OPTIONS["postgresql"], "options", "-c timezone=utc -c lock_timeout=1s")
    stopped, other = store(), store()
    told = Notes()
    other.workers.turn._note = told.note
    with pytest.raises((TurnLost, optuna.exceptions.StorageInternalError)), stopped.workers.turn:  # noqa: PT012
        time.sleep(2)
        with other.workers.turn:
            other.study.set_user_attr("x", "other")
        stopped.study.set_user_attr("x", "stopped")
    assert other.study.user_attrs["x"] == "other"
    assert any("takes it over" in note for note in told.notes)


def test_a_search_waits_for_a_database_that_is_started_again(shared, calls, server):
    def restart(count):
        if count == 3:
            server.stop("immediate")
            threading.Timer(3, server.start).start()

    calls.fail, told = restart, Notes()
    found = lrsearch.search(**shared, progress=told)
    assert any("the database at postgresql+psycopg://lrsearch:***@" in note and "is away" in note for note in told.notes)
    trials = open_storage(StudyFolder(shared["out"])).get_trials()
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert (found.trials.source == "search").sum() == shared["search"]["trials"]
    assert len(calls) == len({t.number for t in trials if "twin" not in t.user_attrs})


def test_a_worker_joins_however_long_others_are_at_the_tables(store, workers, monkeypatch):
    monkeypatch.setitem(storage._OPTIONS["postgresql"], "options", "-c timezone=utc -c lock_timeout=300ms")
    one = store()
    with storage.engine(one._place).connect() as others:
        others.execute(text("SELECT pg_advisory_lock(:key)"), {"key": turns._key("postgresql", "tables")})
        leave = threading.Timer(2, others.invalidate)
        leave.start()
        assert workers().turn.storage.get_all_studies()
        leave.join()


def test_a_database_that_is_gone_is_known_by_what_lies_below_an_error():
    try:
        try:
            raise OperationalError("SELECT 1", {}, Exception("gone"))
        except OperationalError:
            raise PendingRollbackError("again in the same transaction")  # noqa: B904
    except PendingRollbackError as error:
        told = StorageInternalError("during the commit")
        told.__cause__ = error
    assert turns._away(told)
    assert not turns._away(StorageInternalError("too long"))
