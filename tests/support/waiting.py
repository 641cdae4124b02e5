"""Waiting for another thread or process."""

import threading


def until(true: object) -> None:
    """Waits for another one, which needs no more than its turn."""
    assert callable(true)
    waiting = threading.Event()
    for _ in range(6000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it never came")
