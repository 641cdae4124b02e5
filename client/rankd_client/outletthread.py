"""The life of an outlet's thread: started once, asked to stop, waited for; at the interpreter's end it sends what is
pending, and in a forked child it does not exist."""

from __future__ import annotations

import atexit
import os
import threading
import time
from abc import ABC, abstractmethod

import zmq.utils.garbage  # noqa: F401  # now: hooks at the end run in reverse order, and ours needs it alive

CLOSE_SECONDS = 2.0

_living: set[OutletThread] = set()
"""Those that run; they alone, as each holds an outbox, with its memory."""


class OutletThread(ABC):
    """`start` it once, `wake` it when the outbox has something, `stop` it. `_run` is all that its thread does."""

    def __init__(self, name: str) -> None:
        self._stop_at: float | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()
        _living.add(self)

    @abstractmethod
    def wake(self) -> None: ...

    def stop(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Ask the thread to let go what is pending and end, within `timeout_seconds`; do not wait for it."""
        if os.getpid() == self._pid and self._stop_at is None:
            self._stop_at = time.monotonic() + timeout_seconds
            self.wake()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end of a stopped thread. Nothing in a forked child, which has no such thread."""
        if os.getpid() == self._pid and self._thread.is_alive():
            self._thread.join(timeout_seconds)
            _living.discard(self)  # whoever waited for it once does not have to again

    # The thread itself ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _run(self) -> None: ...

    def _is_late(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _live(self) -> None:
        try:
            self._run()
        finally:
            _living.discard(self)


@atexit.register
def _end() -> None:
    """Not a finalizer of each: a client that nobody refers to any more still has things to send."""
    for outlet in (left := list(_living)):
        outlet.stop()
    for outlet in left:
        outlet.join(CLOSE_SECONDS + 0.5)
