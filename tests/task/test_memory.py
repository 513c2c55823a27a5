import pytest
import torch

from lrsearch.errors import ModelError
from lrsearch.task.memory import BatchSize, out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), RuntimeError("MPS backend out of memory"),
], ids=repr)
def test_an_exhausted_memory_is_known(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("memory")], ids=repr)
def test_other_errors_are_not_of_memory(error):
    assert not out_of_memory(error)


def fitting(most):
    """Work on so many examples at a time at most; returns how many they were."""
    def work(size):
        if size > most:
            raise MemoryError
        return size

    return work


def test_a_batch_is_halved_until_it_fits_and_stays_so():
    notes = []
    batch = BatchSize(64, notes.append)
    assert [batch.run(fitting(20)), batch.run(fitting(64))] == [16, 16]
    assert [note.split(" examples")[0] for note in notes] == [f"out of memory: models are run on {n}" for n in (32, 16)]


def test_one_example_that_does_not_fit_is_said():
    batch = BatchSize(5, lambda _: None)
    with pytest.raises(ModelError, match="one example must fit into memory; got MemoryError"):
        batch.run(fitting(0))
    assert batch.size == 1


def test_other_errors_are_left_alone():
    batch = BatchSize(4)
    with pytest.raises(ZeroDivisionError):
        batch.run(lambda size: 1 // 0)
    assert batch.size == 4
