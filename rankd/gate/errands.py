"""What other threads want the gate's thread to do."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque
from collections.abc import Callable


class Errands:
    """`give` may be called from any thread. It wakes `selector`, whose key then has `data` None."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        selector.register(self._woken, selectors.EVENT_READ)

    def fileno(self) -> int:
        return self._woken.fileno()

    def give(self, call: Callable[[], None]) -> None:
        """Have the gate's thread do it."""
        self._calls.append(call)
        with contextlib.suppress(OSError):  # full: it is awake; closed: too late
            self._waker.send(b"\0")

    def run(self) -> None:
        """On the gate's thread, at each of its turns."""
        while self._calls:
            self._calls.popleft()()

    def calm(self) -> None:
        """The selector woke up."""
        with contextlib.suppress(OSError):
            self._woken.recv(4096)

    def close(self) -> None:
        self._waker.close()
        self._woken.close()
