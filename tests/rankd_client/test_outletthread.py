"""The life of an outlet's thread; in forked children and at the interpreter's end it is tested with whole clients."""

from __future__ import annotations

import threading

import pytest

from rankd_client import outletthread
from rankd_client.outletthread import OutletThread

PATIENCE_SECONDS = 10.0


class Waiting(OutletThread):
    def __init__(self) -> None:
        super().__init__("waiting")
        self.awake, self.may_end = threading.Event(), threading.Event()

    def wake(self) -> None:
        self.awake.set()

    def _run(self) -> None:
        self.awake.wait(PATIENCE_SECONDS)
        self.may_end.wait(PATIENCE_SECONDS)


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_it_is_woken_to_stop_and_a_second_stop_gives_it_no_more_time(waiting: Waiting) -> None:
    waiting.start()
    assert waiting in outletthread._living and not waiting._is_late()
    waiting.stop(0.0)
    waiting.stop(PATIENCE_SECONDS)
    assert waiting.awake.is_set() and waiting._is_late()
    waiting.may_end.set()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting._thread.is_alive() and waiting not in outletthread._living


def test_one_that_does_not_end_is_waited_for_once(waiting: Waiting) -> None:
    waiting.start()
    waiting.stop(0.0)
    waiting.join(0.01)
    assert waiting._thread.is_alive() and waiting not in outletthread._living, "the interpreter's end waits no more"
    waiting.may_end.set()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting._thread.is_alive()


def test_whoever_ends_by_itself_is_not_waited_for(waiting: Waiting) -> None:
    waiting.may_end.set()
    waiting.start()
    waiting.wake()
    waiting._thread.join(PATIENCE_SECONDS)
    assert waiting not in outletthread._living
