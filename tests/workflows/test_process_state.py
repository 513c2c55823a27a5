"""The user's process is left alone: what a call needs otherwise is put back."""

import logging
import threading
import warnings

import optuna
import pytest
import torch

from lrsearch.study.process_state import restoring_process_state


@pytest.fixture(autouse=True)
def restored():
    yield
    torch.set_default_dtype(torch.float32)
    optuna.logging.set_verbosity(optuna.logging.INFO)


def state() -> tuple[object, ...]:
    return (
        optuna.logging.get_verbosity(), list(warnings.filters), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), logging.getLogger("lrsearch").level,
    )


def disturb() -> None:
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.zeros(1).device.type == "cpu"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ResourceWarning)
    torch.set_num_threads(2)
    logging.getLogger("lrsearch").setLevel(logging.INFO)


@pytest.mark.parametrize("around", [torch.no_grad(), torch.inference_mode(), torch.device("meta")], ids=["no_grad", "inference", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fails", [False, True])
def test_all_is_as_it_was(around, dtype, fails):
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    torch.set_default_dtype(dtype)

    @restoring_process_state()
    def call():
        disturb()
        if fails:
            raise KeyError

    with around:
        before = state()
        for _ in range(2):
            try:
                call()
            except KeyError:
                assert fails
            assert state() == before


def test_of_calls_in_several_threads_the_last_puts_back():
    torch.set_default_dtype(torch.float64)
    before, first_in, second_out = state(), threading.Event(), threading.Event()

    def first():
        with restoring_process_state():
            first_in.set()
            second_out.wait(10)
            disturb()

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with restoring_process_state():
        disturb()
    assert torch.get_default_dtype() == torch.float32  # the first call still runs
    second_out.set()
    thread.join()
    assert state() == before
