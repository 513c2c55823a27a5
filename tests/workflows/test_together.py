"""Workers that one command starts: those that are lost begin again, a mistake is told, and nobody is waited for in vain."""

import signal
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

import pytest
from faulty_study import made
from jobs import Notes

from lrsearch.cli.main import main
from lrsearch.errors import ConfigError, StudyError
from lrsearch.spec.config import StudyConfig
from lrsearch.workflows import together
from lrsearch.workflows.steps import placers
from lrsearch.workflows.together import RESTARTS, search_together, watch

WRONG = {"kind": "StudyError", "rule": "must be so", "value": "x", "place": "here", "remedy": "Mend it."}


class Lost(Exception):
    """A machine is gone."""


class Scripted:
    """A placer whose workers end as they are told; ``...`` is one that does not."""

    def __init__(self, *ends):
        self.ends, self.count, self.begun, self.stopped = [list(each) for each in ends], len(ends), 0, None

    def start(self, index):
        self.begun += 1
        future, end = Future(), self.ends[index].pop(0)
        if isinstance(end, Exception):
            future.set_exception(end)
        elif end is not ...:
            future.set_result(end)
        return future

    def lost(self, error):
        return isinstance(error, Lost)

    def stop(self, workers):
        self.stopped = len(list(workers))


def test_a_worker_that_is_lost_begins_again():
    placer, told = Scripted([Lost(), Lost(), None], [None]), Notes()
    watch(placer, told)
    assert (placer.begun, placer.stopped) in {(4, 0), (2, 0), (3, 0)}  # once one is done, none begins again
    placer, told = Scripted([Lost(), Lost(), None]), Notes()
    watch(placer, told)
    assert (placer.begun, placer.stopped) == (3, 0)
    assert told.notes == ["worker 0 was lost, and is started again"] * 2


def test_workers_that_are_lost_again_and_again_are_given_up():
    placer = Scripted([Lost()] * (RESTARTS + 1))
    with pytest.raises(StudyError, match=f"each was lost {RESTARTS + 1} times"):
        watch(placer, Notes())
    assert placer.begun == RESTARTS + 1


def test_who_finds_no_room_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(together, "GRACE", 0.1)
    placer = Scripted([None], [...])
    watch(placer, Notes())
    assert placer.stopped == 1


def test_a_mistake_that_all_make_is_told_as_it_is():
    with pytest.raises(StudyError, match=r"^here: must be so; got x\. Mend it\.$"):
        watch(Scripted([WRONG], [WRONG]), Notes())
    watch(Scripted([WRONG], [None]), Notes())  # the others did it
    placer = Scripted([ZeroDivisionError()], [...])
    with pytest.raises(ZeroDivisionError):
        watch(placer, Notes())
    assert placer.stopped == 1


def test_workers_on_ray_need_a_storage_that_they_share(tmp_path):
    with pytest.raises(ConfigError, match="workers on Ray need a storage"):
        search_together(StudyConfig(name="x"), ray="auto", out=tmp_path / "x")


@pytest.mark.parametrize("there", [None, ModuleType("ray")], ids=["nothing", "a folder of that name"])
def test_workers_on_ray_need_ray(tmp_path, monkeypatch, there):
    monkeypatch.setitem(sys.modules, "ray", there)
    with pytest.raises(ConfigError, match=r"needs Ray; got not installed\. pip install 'lrsearch\[ray\]'"):
        placers.RayWorkers(placers.Task(StudyConfig(name="x"), None, None, tmp_path, tmp_path), None, "auto", 0, 1)


def test_a_machine_without_gpus_gets_one_worker(tmp_path, monkeypatch):
    config = StudyConfig(name="x")
    task = placers.Task(config, None, None, tmp_path, tmp_path)
    assert (placers.LocalWorkers(task, None).count, placers.LocalWorkers(task, 3).count) == (1, 3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert placers.LocalWorkers(task, None).count == 4


@pytest.mark.parametrize("said", [["--workers", "0"], ["--workers", "many"], ["--cpus-per-worker", "-1"], ["--gpus-per-worker", "nan"]])
def test_numbers_on_the_command_line_are_checked(said, capsys):
    with pytest.raises(SystemExit):
        main(["search", "digits", *said])
    assert "must be" in capsys.readouterr().err


@pytest.mark.faults
def test_a_killed_process_of_several_is_replaced_and_all_is_whole(tmp_path, monkeypatch, capsys):
    study = made(tmp_path / "home", tmp_path / "cache")
    monkeypatch.chdir(study.home)
    monkeypatch.setenv("LRSEARCH_CACHE", str(study.cache))
    monkeypatch.setenv("PYTHONPATH", str(Path(together.__file__).parents[2]))
    started, start = [], placers.LocalWorkers.start
    monkeypatch.setattr(placers.LocalWorkers, "start", lambda self, index: started.append((self, start(self, index))) or started[-1][1])

    def kill_one():
        while not study.finished():
            time.sleep(0.05)
        placer, future = started[0]
        for process in list((placer._pools[future]._processes or {}).values()):
            placers.os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert main(["search", "tiny.yaml", "--workers", "2", "--trials", "30"]) == 0
    killer.join()
    assert "worker 0 was lost" in capsys.readouterr().out
    study.whole_after(study.finished())
