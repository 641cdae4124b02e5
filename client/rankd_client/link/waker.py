"""What wakes the link's thread out of its poll."""

from __future__ import annotations

import select
import socket
from contextlib import suppress


class Waker:
    """`wake` from any thread; the others from the one that polls `fd`."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    @property
    def fd(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        with suppress(OSError):  # full: it is awake; closed: it has ended
            self._write.send(b"\0")

    def wait(self, seconds: float) -> bool:
        """Sleep for so long, or until somebody wakes; whether that is it."""
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        return bool(poller.poll(1000 * seconds))

    def clear(self) -> None:
        with suppress(OSError):
            self._read.recv(4096)

    def close(self) -> None:
        self._read.close()
        self._write.close()
