"""Pipes by which the bodies of large frames go from socket to socket inside the kernel, uncopied (Linux's splice)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys

PIPE_BYTES = 1 << 20
"""The most that a user may have. It is 256 pages, each with what one packet brought, or with 32 KiB from loopback."""

MAX_PIPES = 16
"""A connection has one only while bytes are in it, that is while libzmq takes no more; others then copy, as they would
without pipes."""

UNSEEN = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


class Pipe:
    """`num_bytes` are in it. Both ways raise OSError as the socket's own `recv` and `send` do."""

    def __init__(self) -> None:
        self.num_bytes = 0
        assert sys.platform == "linux"
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # this user has many: a small one serves as well
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self, source: socket.socket, max_bytes: int) -> int:
        """How many bytes came; 0 where the peer sends no more. For a pipe that is empty."""
        assert sys.platform == "linux"
        self.num_bytes = os.splice(source.fileno(), self._in, max_bytes, flags=UNSEEN)
        return self.num_bytes

    def drain(self, target: socket.socket) -> None:
        """As much as is taken at once."""
        assert sys.platform == "linux"
        while self.num_bytes:
            try:
                self.num_bytes -= os.splice(self._out, target.fileno(), self.num_bytes, flags=UNSEEN)
            except (BlockingIOError, InterruptedError):
                return

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)


class Pipes:
    """Of one gate: made when first needed, and kept."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self._num_made = 0 if hasattr(os, "splice") else MAX_PIPES

    def take(self) -> Pipe | None:
        """An empty one; None where there is none to be had."""
        if self._free:
            return self._free.pop()
        if self._num_made >= MAX_PIPES:
            return None
        try:
            pipe = Pipe()
        except OSError:  # no descriptors
            return None
        self._num_made += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """What is in it still is wanted no more."""
        if pipe.num_bytes:
            pipe.close()
            self._num_made -= 1
        else:
            self._free.append(pipe)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()
