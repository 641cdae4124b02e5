"""The gate's thread: accepts, lets through what `Framing` allows, and ends what breaks a rule."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from rankd.gate.connection import SCRATCH_BYTES, Connection, Listener
from rankd.gate.cuts import Cuts
from rankd.gate.doorman import Doorman
from rankd.gate.errands import Errands
from rankd.gate.inside import Inside
from rankd.gate.limits import GateLimits
from rankd.gate.patience import Patience
from rankd.gate.pipes import Pipes

log = logging.getLogger("rankd.gate")

SWEEP_SECONDS = 0.25
RETRY_SECONDS = 0.02
"""Between attempts to connect inside, where libzmq has a backlog or too many came at once."""

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Gate:
    """`connection`, `delivered`, `cut` and `cut_users` may be called from any thread.

    directory: only this user's; the inner ends of connections have names in it for a moment.
    counters: its keys `num_connections…` and `num_cut_…` are counted by this thread alone.
    on_fault(kind, text): called on this thread; text None: it is over.
    on_crash(error): a fault of ours in the loop; nothing is let through from then on.
    """

    def __init__(
        self,
        directory: Path,
        counters: Counter[str],
        on_fault: Callable[[str, str | None], None],
        on_crash: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inside = Inside(directory)
        self._counters = counters
        self._on_crash = on_crash
        self._clock = clock
        for name in ("num_connections", "num_connections_open"):
            counters[name] += 0
        self._cuts = Cuts(counters, clock)
        self._selector = selectors.DefaultSelector()
        self._errands = Errands(self._selector)
        self._lock = threading.Lock()
        any_fd = self._errands.fileno()
        self._pipes = Pipes()
        admit = partial(Connection, lock=self._lock, pipes=self._pipes)
        self._doorman = Doorman(self._selector, any_fd, on_fault, self._cuts.count, self._end, admit)
        self._patience: dict[Connection, Patience] = {}
        self._waiting: dict[Connection, None] = {}
        self._made_room: deque[Connection] = deque()
        self._unconnected: dict[Connection, None] = {}
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._stops_at: float | None = None
        self._swept_at = self._retried_at = 0.0
        self._thread = threading.Thread(target=self._run, name="rankd-gate", daemon=True)

    def listen(self, name: str, bound: socket.socket, inner_path: str, mechanism: str, limits: GateLimits) -> None:
        """Before `start`: take connections to `bound`, for libzmq's ipc socket at `inner_path`, from peers that speak
        `mechanism` ("NULL" or "CURVE"). The gate owns `bound` from now on."""
        self._doorman.add(Listener(name, bound, inner_path, mechanism, limits))

    def start(self) -> None:
        self._thread.start()

    def connection(self, frame: zmq.Frame) -> Connection | None:
        """The connection by which a frame came that was just received (copy=False); None for one of no peer's."""
        return self._inside.connection(frame)

    def delivered(self, connection: Connection, num_frames: int) -> None:
        """So many frames of `connection` were received (without the routing id): as much may follow."""
        connection.deliver(num_frames)
        few = len(connection.framing.ends) <= connection.listener.limits.window_frames // 2
        if connection.has_ended or (self._waiting and few):
            self._made_room.append(connection)
            if len(self._made_room) == 1:  # else it is on its way: one pass over all who wait is dear
                self._errands.give(self._resume)

    def cut(self, connection: Connection, reason: str) -> None:
        """End this connection and no other."""
        self._cuts.expect(reason)
        self._errands.give(lambda: self._cut(connection, reason, "by the daemon"))

    def cut_users(self, user_ids: Set[str], reason: str) -> None:
        """End the connections made with these keys."""
        self._cuts.expect(reason)

        def cut_all() -> None:
            for connection in [known for known in self._patience if known.user_id in user_ids]:
                self._cut(connection, reason, f"key {connection.user_id}")

        self._errands.give(cut_all)

    def stop_accepting(self) -> None:
        """No more connections; those there go on."""
        self._errands.give(self._doorman.close)

    def close(self, linger_seconds: float) -> None:
        """What libzmq has sent goes out for at most so long. To be called when libzmq's sockets are closed."""
        if not self._thread.is_alive():
            self._close_all()
            return
        stops_at = self._clock() + linger_seconds

        def stop() -> None:
            self._stops_at = stops_at
            for connection in [known for known in self._patience if known.inner is None]:
                self._drop(connection)

        self._errands.give(stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._stops_at is None or (self._patience and self._clock() < self._stops_at):
                self._turn()
        except BaseException as error:
            self._on_crash(error)
        finally:
            self._close_all()

    def _turn(self) -> None:
        hurry = self._unconnected or self._stops_at is not None
        for key, events in self._selector.select(RETRY_SECONDS if hurry else SWEEP_SECONDS):
            if key.data is None:
                self._errands.calm()
            elif isinstance(key.data, Listener):
                for connection in self._doorman.accept(key.data, self._clock()):
                    self._take_in(connection)
            else:
                self._serve(key.data, key.fileobj, events)
        self._errands.run()
        now = self._clock()
        if self._unconnected and now - self._retried_at >= RETRY_SECONDS:
            self._retried_at = now
            for connection in self._inside.by_turns(self._unconnected):
                self._serve(connection, None, 0)
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._sweep(now)

    def _take_in(self, connection: Connection) -> None:
        self._patience[connection] = Patience(connection.listener.limits, self._clock())
        self._counters["num_connections"] += 1
        self._counters["num_connections_open"] = len(self._patience)
        self._serve(connection, connection.outer, READ)

    def _serve(self, connection: Connection, end: Any, events: int) -> None:
        """One connection's turn. No exception of it reaches the others."""
        if connection not in self._patience:  # ended by an event of the same turn
            return
        try:
            self._pass(connection, end, events)
        except OSError:  # the peer is gone
            self._watch(connection, connection.outer, False, False)
            connection.leave_outer()
        except Exception:
            log.exception("a fault of the gate, with %s", connection.name)
            self._refuse(connection, "fault", "a fault of the gate's own")
        self._update(connection)

    def _pass(self, connection: Connection, end: Any, events: int) -> None:
        if end is connection.outer and end is not None:
            if events & WRITE:
                connection.flush_outer()
            if events & READ:
                connection.read_outer(self._scratch)
        elif end is not None:
            if events & WRITE:
                connection.flush_inner()
            if events & READ:
                connection.read_inner(self._scratch)
        if connection.wants_inner and (events == 0 or not self._unconnected):
            self._open_inner(connection)
        if (breach := connection.framing.breach) is not None and not connection.has_ended:
            self._refuse(connection, breach.reason, breach.detail)

    def _open_inner(self, connection: Connection) -> None:
        """Later where there is no room."""
        now = self._clock()
        if self._doorman.has_files(now) and connection.listener.bucket.take(now) and self._inside.connect(connection):
            connection.flush_inner()

    def _resume(self) -> None:
        """Room was made: let in who waits for some, in the order in which they came to wait."""
        of: dict[Connection, None] = {}
        while self._made_room:
            of[self._made_room.popleft()] = None
        waiting, self._waiting = self._waiting, {}
        for other in waiting:
            self._serve(other, other.outer, READ)
        for connection in of:
            self._serve(connection, None, 0)

    def _update(self, connection: Connection) -> None:
        """What to wait for next, or the end."""
        if connection.has_ended:
            self._doorman.uncount(connection)
            connection.shut_inner()
        is_over = connection.inner_ended and (connection.outer is None or not connection.to_outer)
        if is_over or (connection.has_ended and connection.inner is None):  # unanswered, it said nothing yet
            self._drop(connection)
            return
        if connection.wants_inner:
            self._unconnected.setdefault(connection)
        else:
            self._unconnected.pop(connection, None)
        readable = connection.is_readable
        self._watch(connection, connection.outer, readable, bool(connection.to_outer))
        inner_open = not connection.inner_ended
        self._watch(
            connection, connection.inner, inner_open and not connection.to_outer,
            inner_open and connection.waits_inside,
        )  # fmt: skip
        if connection.framing.wants_room and not connection.has_ended:
            self._waiting.setdefault(connection)
        held, ended = bool(connection.held), connection.has_ended or connection.inner_ended
        self._patience[connection].look(connection.framing, readable, held, ended, self._clock())

    def _watch(self, connection: Connection, end: socket.socket | None, read: bool, write: bool) -> None:
        if end is None:
            return
        wanted = (READ if read else 0) | (WRITE if write else 0)
        key = self._selector.get_map().get(end)
        if key is None:
            if wanted:
                self._selector.register(end, wanted, connection)
        elif not wanted:
            self._selector.unregister(end)
        elif key.events != wanted:
            self._selector.modify(end, wanted, connection)

    def _sweep(self, now: float) -> None:
        self._doorman.look(now)
        for connection, patience in list(self._patience.items()):
            if patience.has_left(now):
                self._inside.forget(connection)
                connection.shut_inner(anyway=True)
            reason = patience.overdue(connection.framing, now)
            if reason is not None and connection.has_ended:
                self._drop(connection)
            elif reason is not None:
                self._cut(connection, reason, "")
        if self._waiting:
            self._resume()

    def _cut(self, connection: Connection, reason: str, detail: str) -> None:
        if connection in self._patience and connection.outer is not None:
            self._refuse(connection, reason, detail)
            self._update(connection)

    def _end(self, connection: Connection, reason: str, detail: str) -> None:
        """One that makes way for another."""
        if connection.has_ended:
            self._drop(connection)
        else:
            self._cut(connection, reason, detail)

    def _refuse(self, connection: Connection, reason: str, detail: str) -> None:
        self._cuts.count(connection.listener, connection.peer, connection.name, reason, detail)
        for end in (connection.outer, connection.inner):  # closed under the selector otherwise
            self._watch(connection, end, False, False)
        connection.cut()

    def _drop(self, connection: Connection) -> None:
        for end in (connection.outer, connection.inner):
            self._watch(connection, end, False, False)
        del self._patience[connection]
        self._waiting.pop(connection, None)
        self._unconnected.pop(connection, None)
        self._inside.forget(connection)
        self._doorman.leave(connection)
        self._counters["num_connections_open"] = len(self._patience)
        connection.close()

    def _close_all(self) -> None:
        self._doorman.close()
        for connection in list(self._patience):
            self._drop(connection)
        self._selector.close()
        self._errands.close()
        self._pipes.close()
