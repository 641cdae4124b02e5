"""Threads that measure, and how they end with the interpreter: one that is within torch while that is taken down aborts
the process."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable

EXIT_SECONDS = 60.0
"""For what is under way: a batch of some tenths of a second, or one large matrix; more only where a GPU hangs."""

CLOSED_SECONDS = 5.0
"""The same where the executor was closed before: a daemon that is stopped ends within 20 s, whatever hangs."""


class Workers:
    """Threads of an executor. It need not be closed: where the interpreter ends while they are there, it is then, and
    what they are at is waited for."""

    def __init__(self, close: Callable[[], None]) -> None:
        """`close`: the executor's, after which they begin nothing more. It may have been called before."""
        self._close = close
        self.is_closed = False
        """To be set by the executor as it is closed."""
        self._threads: list[threading.Thread] = []
        _there.add(self)

    def start(self, name: str, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        self._close()

    def join(self, until: float) -> None:
        """Waits for them, but not beyond `until`, in monotonic seconds."""
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


_there: weakref.WeakSet[Workers] = weakref.WeakSet()
"""Those of executors that are in use, or have threads left."""

os.register_at_fork(after_in_child=_there.clear)  # the threads, and what they use, are the other process's


@atexit.register
def _end_all() -> None:
    workers = list(_there)
    seconds = CLOSED_SECONDS if all(each.is_closed for each in workers) else EXIT_SECONDS
    for each in workers:
        each.close()
    until = time.monotonic() + seconds
    for each in workers:
        each.join(until)
