"""One peer's connection: its socket outside, ours to libzmq inside, and what is on its way between them."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field

from rankd.gate.bucket import Bucket
from rankd.gate.framing import SIGNATURE_BYTES, Breach, Framing
from rankd.gate.limits import MAX_COMMAND_BYTES, GateLimits
from rankd.gate.pipes import Pipe, Pipes

BUFFER_BYTES = 256 << 10
"""Read at once. What the other side does not take at once is kept, and nothing more is read until it has."""

MIN_SPLICED_BYTES = BUFFER_BYTES // 2
"""Less of a frame is copied; and so is what follows, until there is much to be read again: who sends in tiny packets
would have a page of the kernel's memory for each of them, while libzmq does not read."""

SCRATCH_BYTES = 2 * BUFFER_BYTES + MAX_COMMAND_BYTES
"""What was read, behind what was held back of the last time."""

BURST_SECONDS = 10.0

FIRST_FRAMES = 6
"""Of a peer of which nothing was delivered yet: one message, and fewer than libzmq queues. It never reads a peer that
chose a routing id that another has: once its queue is full, it does not even see that the peer is gone, and keeps its
descriptor."""

MAX_READS = 8
"""For one connection before others have their turn."""


@dataclass(eq=False, slots=True)
class Listener:
    """One address outside, and the path inside that it leads to."""

    name: str
    socket: socket.socket
    inner_path: str
    mechanism: str
    limits: GateLimits
    connections: dict[Connection, None] = field(default_factory=dict)
    """All of them, the oldest first."""
    num_by_peer: dict[str, int] = field(default_factory=dict)
    """Of those whose peer has not left."""
    num_present: int = 0
    """The same, of all peers."""
    undelivered_bytes: int = 0
    """Of all its connections; changed under the gate's lock."""
    subscription_bytes: int = 0
    """Of all its connections that are open."""
    bucket: Bucket = field(init=False)

    def __post_init__(self) -> None:
        rate = self.limits.connections_per_second
        self.bucket = Bucket(rate, BURST_SECONDS * rate)


class Connection:
    """`name` says who it is in logs, `peer` is what connections are counted by, `user_id` the name of the key by which
    the peer made itself known, once a message told it ("" before).

    Of the gate's thread, but for `user_id` and what `deliver` touches, which `lock` guards.
    """

    def __init__(
        self, listener: Listener, outer: socket.socket, peer: str, name: str, lock: threading.Lock, pipes: Pipes
    ) -> None:
        self.listener = listener
        self.outer: socket.socket | None = outer
        self.inner: socket.socket | None = None
        self.inner_name = ""
        """What `getpeername` says at libzmq's end."""
        self.peer = peer
        self.name = name
        self.user_id = ""
        self.framing = Framing(listener.limits, listener.mechanism)
        self.framing.window_frames = FIRST_FRAMES
        self.undelivered_bytes = 0
        self.held = b""
        """Read, but not to be let through yet."""
        self.to_inner = b""
        self.to_outer = b""
        self._pipe: Pipe | None = None
        """With what follows `to_inner`."""
        self._pipes = pipes
        self._is_fast = False
        """The last read brought much: there is more."""
        self.has_ended = False
        """The peer sends no more, or is not listened to any more."""
        self.inner_ended = False
        self.is_counted = False
        """Whether it takes one of the places that there are for its peer."""
        self._is_deaf = False
        self._was_shut = False
        self._lock = lock

    @property
    def is_readable(self) -> bool:
        """Whether more from the peer could be passed on."""
        stopped = self.has_ended or self.inner_ended or self.framing.breach is not None
        return self.outer is not None and not (stopped or self.waits_inside or self.framing.wants_room)

    @property
    def waits_inside(self) -> bool:
        """Whether libzmq has not taken all that was let through."""
        return bool(self.to_inner or self._pipe is not None)

    def read_outer(self, scratch: memoryview) -> None:
        """Pass on what the peer sent, as far as its frames may go and libzmq takes them. Raises OSError if it is
        gone."""
        if self.framing.wants_room and not self.waits_inside:
            self._let_through(memoryview(self.held))
        for _ in range(MAX_READS):
            if not self.is_readable:
                return
            assert self.outer is not None
            goes_unseen = self._is_fast and self.framing.remaining_bytes >= MIN_SPLICED_BYTES
            pipe = self._pipes.take() if goes_unseen else None
            try:
                num_read = self._read(self.outer, scratch) if pipe is None else self._splice(self.outer, pipe)
            except (BlockingIOError, InterruptedError):
                return
            self.has_ended |= not num_read

    def _read(self, outer: socket.socket, scratch: memoryview) -> int:
        num_held = len(self.held)
        scratch[:num_held] = self.held
        num_read = outer.recv_into(scratch[num_held : num_held + BUFFER_BYTES])
        if num_read:
            self._let_through(scratch[: num_held + num_read])
        self._is_fast = num_read >= MIN_SPLICED_BYTES
        return num_read

    def _splice(self, outer: socket.socket, pipe: Pipe) -> int:
        """Of a frame's body."""
        self._pipe = pipe
        try:
            num_read = pipe.fill(outer, self.framing.remaining_bytes)
            self.framing.skip(num_read)
        finally:
            self.flush_inner()
        self._is_fast = num_read >= MIN_SPLICED_BYTES
        return num_read

    def read_inner(self, scratch: memoryview) -> None:
        """Pass on what libzmq sent."""
        for _ in range(MAX_READS):
            if self.inner is None or self.to_outer or self.inner_ended:
                return
            try:
                num_read = self.inner.recv_into(scratch)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # libzmq closed it with our bytes unread
                num_read = 0
            if not num_read:
                self.inner_ended = True
            else:
                self._say(scratch[:num_read])

    def flush_inner(self) -> None:
        """Once libzmq has room again."""
        if self.inner is None:
            return
        try:
            self.to_inner = _send(self.inner, memoryview(self.to_inner))
            if self._pipe is not None and not self.to_inner:
                self._pipe.drain(self.inner)
        except OSError:  # libzmq refused the peer; what it says about that is still to be read
            self.held, self.has_ended = b"", True
            self._forget_unsent()
        if self._pipe is not None and not self._pipe.num_bytes:
            self._forget_unsent()

    def flush_outer(self) -> None:
        """Once the peer has room again."""
        self._say(memoryview(self.to_outer))

    def leave_outer(self) -> None:
        """The peer is gone: what it sent before goes on to libzmq."""
        if self.outer is not None:
            self.outer.close()
            self.outer = None
        self.has_ended = True
        self.held = self.to_outer = b""

    def cut(self) -> None:
        """Hear no more of the peer, not what waits here either. What is whole in libzmq's hands will be delivered."""
        self.leave_outer()
        sent = self.framing.position - len(self.to_inner) - (self._pipe.num_bytes if self._pipe is not None else 0)
        self._forget_unsent()
        ends = self.framing.ends
        with self._lock:
            while ends and ends[-1][0] > sent:
                ends.pop()

    def shut_inner(self, anyway: bool = False) -> None:
        """Once all that the peer sent was delivered, and not before: libzmq then closes its descriptor, and its number,
        by which messages are told apart, may come to name another connection.

        anyway: when all is in libzmq's hands. What is whole there is delivered even so, but may be taken for another's
        where limits are kept; whose rights count comes with the message itself."""
        ends = self.framing.ends
        with self._lock:
            while ends and not ends[-1][2]:  # of a message that was never finished
                ends.pop()
            is_early = self.waits_inside or bool(ends and not anyway)
        if not is_early and not self._was_shut and self.inner is not None:
            self._was_shut = True
            with contextlib.suppress(OSError):
                self.inner.shutdown(socket.SHUT_WR)

    def deliver(self, num_frames: int) -> None:
        """From any thread: the daemon has so many frames more, or (-1) will have none."""
        ends, num_bytes = self.framing.ends, 0
        with self._lock:
            if num_frames > 0:
                self.framing.window_frames = self.listener.limits.window_frames
            if num_frames < 0:
                ends.clear()
                num_bytes = self.undelivered_bytes
            for _ in range(min(num_frames, len(ends))):
                num_bytes += ends.popleft()[1]
            self.undelivered_bytes -= num_bytes
            self.listener.undelivered_bytes -= num_bytes

    def close(self) -> None:
        self.deliver(-1)
        for end in (self.outer, self.inner):
            if end is not None:
                end.close()
        self.outer = self.inner = None
        self._forget_unsent()
        if self.listener.limits.max_subscriptions:
            self.listener.subscription_bytes -= self.framing.reserved_bytes

    def _forget_unsent(self) -> None:
        self.to_inner = b""
        if self._pipe is not None:
            self._pipes.give_back(self._pipe)
            self._pipe = None

    def _say(self, data: memoryview) -> None:
        if self.outer is None or self._is_deaf:
            return
        try:
            self.to_outer = _send(self.outer, data)
        except OSError:  # it hears no more; what it sent before is still to be read
            self._is_deaf, self.to_outer = True, b""

    def _let_through(self, data: memoryview) -> None:
        framing, listener, limits = self.framing, self.listener, self.listener.limits
        reserved = framing.reserved_bytes
        with self._lock:
            ours = limits.window_bytes - self.undelivered_bytes
            room = min(ours, limits.max_total_bytes - listener.undelivered_bytes)
        num_good = framing.feed(data, room)
        with self._lock:  # before a byte is sent, hence before the daemon can have it
            self.undelivered_bytes += framing.reserved_bytes - reserved
            listener.undelivered_bytes += framing.reserved_bytes - reserved
        self.held = bytes(data[num_good:])
        if limits.max_subscriptions:
            listener.subscription_bytes += framing.reserved_bytes - reserved
            if listener.subscription_bytes > limits.max_all_subscription_bytes:
                all_bytes = limits.max_all_subscription_bytes
                framing.breach = Breach("too_many_subscriptions", f"more than {all_bytes} bytes of all subscribers")
                return
        if self.inner is None:
            self.to_inner += bytes(data[:num_good])
        elif num_good:
            try:
                self.to_inner = _send(self.inner, data[:num_good])
            except OSError:  # as in flush_inner
                self.held, self.has_ended = b"", True

    @property
    def wants_inner(self) -> bool:
        """Whether the peer has said enough to be connected to libzmq."""
        return self.inner is None and len(self.to_inner) >= SIGNATURE_BYTES


def _send(target: socket.socket, data: memoryview) -> bytes:
    """Send what is taken at once; returns a copy of the rest."""
    num_sent = 0
    while num_sent < len(data):
        try:
            num_sent += target.send(data[num_sent:])
        except (BlockingIOError, InterruptedError):
            break
    return bytes(data[num_sent:])
