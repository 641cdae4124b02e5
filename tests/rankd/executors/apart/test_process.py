"""A real process, on the CPU, that stands still."""

import os
import signal

import pytest
import torch
from waiting import is_there
from works import CPU, work

from rankd.executors.apart.process import ApartError, Process
from rankd.weights import DEFAULT_SETTINGS


@pytest.mark.parametrize("name", ["w", "w" * 1_000_000], ids=["which has taken the batch", "which does not take it"])
def test_one_that_gives_no_answer_in_time_is_over(name: str) -> None:
    process = Process(CPU, DEFAULT_SETTINGS, 1)
    try:
        process.wait_ready()
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ApartError, match=r"^its process gave no answer within 0 s and is ended$") as raised:
            process.measure([work(torch.eye(2), name)], 0.2)
        assert raised.value.had_begun and process.is_over
        assert process.measure([work(torch.eye(2))], 0.2) is None
    finally:
        process.close()
    assert not is_there(process.pid)


def test_after_a_fault_of_ours_nobody_hears_the_answer_to_what_was_asked_before() -> None:
    process = Process(CPU, DEFAULT_SETTINGS, 1)
    try:
        process.wait_ready()
        with pytest.raises(OverflowError):  # by poll(), when the batch is sent
            process.measure([work(torch.eye(4))], 1e9)
        assert process.is_over and process.measure([work(10 * torch.eye(8))], 30.0) is None
    finally:
        process.close()
