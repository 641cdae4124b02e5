"""Waiting for other threads and processes."""

import threading
from pathlib import Path


def until(true: object) -> None:
    """Waits for another one, which needs no more than its turn."""
    assert callable(true)
    waiting = threading.Event()
    for _ in range(6000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it never came")


def is_there(pid: int | None) -> bool:
    """A process that is waited for by nobody is not."""
    try:
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
