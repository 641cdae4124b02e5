"""Who gets in: by user, by number, and only while there are descriptors for it."""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterator

from rankd.gate.connection import Connection, Listener
from rankd.gate.peers import has_spare_files, identify

ACCEPTS_AT_ONCE = 8
PAUSE_SECONDS = 1.0
"""Without accepting, once there are no more descriptors; who knocks meanwhile waits in the backlog."""

BACKLOG = 1024

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

TCP_OPTIONS = tuple(
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_NODELAY", 1), ("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
)
"""A peer whose host vanished is noticed by TCP: ZeroMQ's heartbeats abort the process in a race (libzmq 4.3.5)."""


class Doorman:
    """Accepts for the gate, on its thread. `refused(listener, peer, name, reason, detail)` is told of whom it sends
    away; `end(connection, reason, detail)` ends one that makes way for another; `connect(listener, accepted, peer,
    name)` makes one of who may come in."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        any_fd: int,
        on_fault: Callable[[str, str | None], None],
        refused: Callable[[Listener, str, str, str, str], None],
        end: Callable[[Connection, str, str], None],
        connect: Callable[[Listener, socket.socket, str, str], Connection],
    ) -> None:
        self._selector = selector
        self._any_fd = any_fd
        self._on_fault = on_fault
        self._refused = refused
        self._end = end
        self._connect = connect
        self._listeners: list[Listener] = []
        self._paused_until: float | None = None

    def add(self, listener: Listener) -> None:
        listener.socket.setblocking(False)
        listener.socket.listen(BACKLOG)
        self._listeners.append(listener)
        self._selector.register(listener.socket, selectors.EVENT_READ, listener)

    def accept(self, listener: Listener, now: float) -> Iterator[Connection]:
        """Those who knocked and may come in."""
        for _ in range(ACCEPTS_AT_ONCE):
            if self._paused_until is not None or listener not in self._listeners:
                return
            if not self.has_files(now):
                return
            try:
                accepted, address = listener.socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._pause(now)
                    return
                continue  # gone before it came in
            if (connection := self._admit(listener, accepted, address)) is not None:
                yield connection

    def leave(self, connection: Connection) -> None:
        """One that came in is over."""
        self.uncount(connection)
        connection.listener.connections.pop(connection, None)

    def uncount(self, connection: Connection) -> None:
        """The peer has left: its place is free, even while what it sent is still being read."""
        if not connection.is_counted:
            return
        connection.is_counted = False
        listener = connection.listener
        listener.num_present -= 1
        listener.num_by_peer[connection.peer] -= 1
        if not listener.num_by_peer[connection.peer]:
            del listener.num_by_peer[connection.peer]

    def has_files(self, now: float) -> bool:
        """Whether there are descriptors for one more; where not, nobody comes in for a while."""
        if has_spare_files(self._any_fd):
            return True
        self._pause(now)
        return False

    def look(self, now: float) -> None:
        """Now and then: whether there are descriptors again."""
        if self._paused_until is None or now < self._paused_until:
            return
        if not self.has_files(now):
            return
        self._paused_until = None
        for listener in self._listeners:
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        self._on_fault("open_files", None)

    def close(self) -> None:
        """No more connections."""
        for listener in self._listeners:
            if self._paused_until is None:
                self._selector.unregister(listener.socket)
            listener.socket.close()
        self._listeners.clear()

    def _pause(self, now: float) -> None:
        """There are no more descriptors: do not ask again at once."""
        if self._paused_until is None:
            for listener in self._listeners:
                self._selector.unregister(listener.socket)
            self._on_fault("open_files", "the limit on open files is reached; new connections wait")
        self._paused_until = now + PAUSE_SECONDS

    def _admit(self, listener: Listener, accepted: socket.socket, address: object) -> Connection | None:
        try:
            peer, name, uid = identify(accepted, address)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for level, option, value in TCP_OPTIONS:
                    accepted.setsockopt(level, option, value)
            accepted.setblocking(False)
        except OSError:  # gone already
            accepted.close()
            return None
        reason, detail = self._why_not(listener, peer, uid)
        if reason:
            self._refused(listener, peer, name, reason, detail)
            accepted.close()
            return None
        connection = self._connect(listener, accepted, peer, name)
        connection.is_counted = True
        listener.connections[connection] = None
        listener.num_present += 1
        listener.num_by_peer[peer] = listener.num_by_peer.get(peer, 0) + 1
        return connection

    def _why_not(self, listener: Listener, peer: str, uid: int | None) -> tuple[str, str]:
        if uid not in (None, 0, os.getuid()):
            return "other_user", f"user id {uid}; expected {os.getuid()}"
        full, oldest = self._crowd(listener, peer)
        if full and oldest is None:
            return "too_many_connections", full
        if oldest is not None:
            self._end(oldest, "too_many_connections", full)
        return "", ""

    def _crowd(self, listener: Listener, peer: str) -> tuple[str, Connection | None]:
        """Which limit one more of `peer` would break ("": none), and the connection that makes way for it, if any."""
        limits = listener.limits
        if listener.num_by_peer.get(peer, 0) >= limits.max_connections_per_peer:
            its_own = [known for known in _unfinished(listener) if known.peer == peer]
            return f"{peer} has {limits.max_connections_per_peer}", _of_the_busiest(its_own)
        if listener.num_present >= limits.max_connections:
            return f"there are {limits.max_connections}", _of_the_busiest(_unfinished(listener))
        if len(listener.connections) >= 2 * limits.max_connections:
            over = [known for known in listener.connections if known.has_ended]
            return f"{limits.max_connections} are about to end", _of_the_busiest(over)
        return "", None


def _unfinished(listener: Listener) -> list[Connection]:
    """Those whose handshake is not through, though we heard all that they said: it costs a stranger nothing to begin
    many."""
    return [
        known for known in listener.connections if not (known.framing.is_open or known.has_ended or known.wants_inner)
    ]


def _of_the_busiest(connections: list[Connection]) -> Connection | None:
    """The oldest of the peer that has most of them."""
    for peer, _ in Counter(known.peer for known in connections).most_common(1):
        return next(known for known in connections if known.peer == peer)
    return None
