"""ZMTP 3 (RFC 23, 37) as far as a gate must know it: where frames end, and which rule the next byte would break.

Pure: no socket, no clock. Payloads are counted, never copied. A rule is checked as soon as the header that breaks it
is there, and nothing from that header on is let through.
"""

from __future__ import annotations

from collections import deque

from rankd.gate.limits import MAX_COMMAND_BYTES, GateLimits

SIGNATURE_BYTES, MECHANISM_START, MECHANISM_END, GREETING_BYTES = 10, 12, 32, 64
MORE, LONG, COMMAND = 1, 2, 4

CURVE_OVERHEAD_BYTES = 64
"""At most what CURVE adds to a frame: its name, a nonce, flags and a tag make 33, the SUBSCRIBE of a topic 10 more."""

SUBSCRIBE, CANCEL = b"\x09SUBSCRIBE", b"\x06CANCEL"


class Breach(Exception):
    """A rule that a peer broke: `reason` is its name in counters, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Framing:
    """One connection's bytes, from the first on. `mechanism` is the one expected: "NULL" or "CURVE"."""

    def __init__(self, limits: GateLimits, mechanism: str) -> None:
        self.limits = limits
        self.window_frames = limits.window_frames
        self.mechanism = mechanism
        self.breach: Breach | None = None
        """Set for good when a rule was broken."""
        self.position = 0
        """Bytes let through."""
        self.reserved_bytes = 0
        """Of message frames let through, headers and claimed lengths included."""
        self.ends: deque[tuple[int, int, bool]] = deque()
        """For each whole message frame, in order: the position of its end, its bytes, and whether a message ends there.
        Its reader takes entries off the left."""
        self.num_messages = 0
        self.claimed_bytes = 0
        """Of the message under way, as far as its frames said."""
        self.wants_room = False
        """The last `feed` stopped at a frame that did not fit."""
        self._handshake = ["READY"] if mechanism == "NULL" else ["HELLO", "INITIATE"]
        self._overhead = CURVE_OVERHEAD_BYTES if mechanism == "CURVE" else 0
        self._frames_in_message = 0
        self._num_subscriptions = 0
        self._remaining = 0
        self._frame_bytes = 0
        self._more = False

    @property
    def is_open(self) -> bool:
        """Whether the handshake is through."""
        return not self._handshake

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._remaining > 0 or self._frames_in_message > 0

    @property
    def remaining_bytes(self) -> int:
        """Of the body of the message frame under way. They may go on without being seen."""
        return self._remaining

    def skip(self, num_bytes: int) -> None:
        """So many of `remaining_bytes` went on."""
        self._remaining -= num_bytes
        self.position += num_bytes
        if not self._remaining:
            self._end_frame()

    def feed(self, data: memoryview, room_bytes: int) -> int:
        """How many bytes of `data` may go on. The rest is to be given again, in front of what follows: an incomplete
        header or command, or (`wants_room`) a frame for which `room_bytes` or `window_frames` leave no place."""
        taken = 0
        self.wants_room = False
        limit = self.reserved_bytes + room_bytes
        try:
            while taken < len(data):
                if self._remaining:
                    step = min(self._remaining, len(data) - taken)
                    self.skip(step)
                elif step := self._take(data[taken:], limit):
                    self.position += step
                else:
                    break
                taken += step
        except Breach as breach:
            self.breach = breach
        return taken

    def _take(self, data: memoryview, limit: int) -> int:
        """Bytes of the greeting, a command, or a frame's header at the start of `data`; 0 where that is not enough."""
        if self.position < GREETING_BYTES:
            return self._take_greeting(data)
        flags = data[0]
        if flags & ~(MORE | LONG | COMMAND) or (flags & COMMAND and flags & MORE):
            raise Breach("bad_frame", f"flags {flags:#04x}")
        size = 9 if flags & LONG else 2
        if len(data) < size:
            return 0
        length = int.from_bytes(data[1:size], "big")
        if flags & COMMAND:
            return self._take_command(data, size, length, limit)
        if self._handshake:
            raise Breach("bad_handshake", f"a message where {self._handshake[0]} was expected")
        if self.limits.max_subscriptions and not self._overhead:
            return self._take_subscription(data, size, length, limit)
        return self._take_header(flags, size, length, limit)

    def _take_greeting(self, data: memoryview) -> int:
        """The greeting comes in pieces, each side waiting for the other's: as much of it as is good by itself."""
        start = self.position
        if start < SIGNATURE_BYTES:
            if data[0] != 0xFF or (len(data) >= SIGNATURE_BYTES and not data[9] & 1):
                raise Breach("bad_greeting", f"{bytes(data[:10])!r} is not ZMTP")
            return SIGNATURE_BYTES if len(data) >= SIGNATURE_BYTES else 0
        if start < MECHANISM_START:
            if start == SIGNATURE_BYTES and data[0] != 3:
                raise Breach("bad_greeting", f"ZMTP version {data[0]}; expected 3")
            return 1
        if len(data) < GREETING_BYTES - start:
            return 0
        mechanism = bytes(data[: MECHANISM_END - start])
        if mechanism != self.mechanism.encode().ljust(MECHANISM_END - MECHANISM_START, b"\0"):
            name = mechanism.rstrip(b"\0")
            raise Breach("wrong_mechanism", f"{name!r}; expected {self.mechanism}")
        return GREETING_BYTES - start

    def _take_command(self, data: memoryview, size: int, length: int, limit: int) -> int:
        if length > MAX_COMMAND_BYTES:
            raise Breach("too_long", f"a command of {length} bytes; expected at most {MAX_COMMAND_BYTES}")
        if len(data) < size + length:
            return 0
        body = bytes(data[size : size + length])
        name = body[1 : 1 + body[0]] if body else b""
        if self._handshake:
            if name != self._handshake[0].encode():
                raise Breach("bad_handshake", f"{name[:20]!r}; expected {self._handshake[0]}")
            if name == b"READY":
                check_metadata(body[6:])
            del self._handshake[0]
            return size + length
        if self.limits.max_subscriptions and not self._overhead:
            for prefix, change in ((SUBSCRIBE, 1), (CANCEL, -1)):
                if body.startswith(prefix):
                    return self._count_subscription(change, length - len(prefix), size + length, limit)
        raise Breach("bad_command", f"{name[:20]!r} after the handshake")

    def _take_subscription(self, data: memoryview, size: int, length: int, limit: int) -> int:
        """A message of ZMTP 3.0: 1 or 0, and the topic."""
        if data[0] & MORE or not length:
            raise Breach("bad_subscription", "a message that is no subscription")
        if length > 1 + self.limits.max_frame_bytes:
            raise Breach("too_long", f"a frame of {length} bytes; expected at most {self.limits.max_frame_bytes}")
        if len(data) < size + length:
            return 0
        if data[size] > 1:
            raise Breach("bad_subscription", "a message that is no subscription")
        return self._count_subscription(1 if data[size] else -1, length - 1, size + length, limit)

    def _count_subscription(self, change: int, topic_bytes: int, wire_bytes: int, limit: int) -> int:
        self._check_frame(topic_bytes)
        if not self._fits(wire_bytes, limit):
            return 0
        self._check_subscriptions(change, wire_bytes)
        self.reserved_bytes += wire_bytes
        self._frame_bytes = wire_bytes
        self.position += wire_bytes  # the end that is noted is this frame's
        self._end_frame()
        self.position -= wire_bytes
        return wire_bytes

    def _check_subscriptions(self, change: int, wire_bytes: int) -> None:
        limits = self.limits
        self._num_subscriptions = max(0, self._num_subscriptions + change)
        if self._num_subscriptions > limits.max_subscriptions:
            raise Breach("too_many_subscriptions", f"more than {limits.max_subscriptions}")
        if self.reserved_bytes + wire_bytes > limits.max_subscription_bytes:
            raise Breach("too_many_subscriptions", f"more than {limits.max_subscription_bytes} bytes of them")

    def _take_header(self, flags: int, size: int, length: int, limit: int) -> int:
        self._check_frame(length - self._overhead)
        if self._frames_in_message >= self.limits.max_frames:
            raise Breach("too_many_frames", f"a message of more than {self.limits.max_frames} frames")
        claimed = (self.claimed_bytes if self._frames_in_message else 0) + size + length
        if not self._overhead and claimed > self.limits.max_message_bytes:
            raise Breach("too_long", f"a message of {claimed} bytes; expected at most {self.limits.max_message_bytes}")
        if not self._fits(size + length, limit):
            return 0
        if self.limits.max_subscriptions:  # CURVE hides which it is
            self._check_subscriptions(1, size + length)
        if not self._frames_in_message:
            self.num_messages += 1
        self._frames_in_message += 1
        self.claimed_bytes = claimed
        self.reserved_bytes += size + length
        self._frame_bytes = size + length
        self._more = bool(flags & MORE)
        self._remaining = length
        if not length:
            self.position += size
            self._end_frame()
            self.position -= size
        return size

    def _check_frame(self, length: int) -> None:
        if length > self.limits.max_frame_bytes:
            raise Breach("too_long", f"a frame of {length} bytes; expected at most {self.limits.max_frame_bytes}")

    def _fits(self, wire_bytes: int, limit: int) -> bool:
        fits = self.reserved_bytes + wire_bytes <= limit and len(self.ends) < self.window_frames
        self.wants_room = not fits
        return fits

    def _end_frame(self) -> None:
        self.ends.append((self.position, self._frame_bytes, not self._more))
        if not self._more:
            self._frames_in_message = 0


def check_metadata(data: bytes) -> None:
    """The properties of a READY command. A routing id of the peer's choice is refused: libzmq trusts that nobody
    chooses one that it will give itself. With CURVE they are encrypted, in INITIATE, and cannot be checked: there it is
    the holder of a key who would have to guess (docs/security.md)."""
    while data:
        name, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        length = int.from_bytes(data[:4], "big")
        if not name or len(data) < 4 + length:
            raise Breach("bad_handshake", "metadata that ends early")
        if length and name.lower() == b"identity":
            raise Breach("bad_handshake", "a routing id of its own choice")
        data = data[4 + length :]
