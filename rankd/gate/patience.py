"""How long a connection may take: pure, times are arguments."""

from __future__ import annotations

from rankd.gate.framing import Framing
from rankd.gate.limits import GateLimits


class Patience:
    """Of one connection, accepted at `now`."""

    def __init__(self, limits: GateLimits, now: float) -> None:
        self.limits = limits
        self._accepted_at = now
        self._message = -1
        self._message_since = now
        self._unread_since: float | None = None
        self._undelivered_since = now
        self._next_frame = -1
        self._ended_at: float | None = None

    def look(self, framing: Framing, is_read: bool, has_held: bool, has_ended: bool, now: float) -> None:
        """To be called after each change. is_read: whether we take what the peer sends; time in which we do not is no
        fault of its own. has_held: there is a piece of a frame that cannot go on alone."""
        message = framing.num_messages if framing.is_inside or has_held else -1
        if message != self._message:
            self._message, self._message_since = message, now
        if not is_read and self._unread_since is None:
            self._unread_since = now
        elif is_read and self._unread_since is not None:
            self._message_since += now - max(self._unread_since, self._message_since)
            self._accepted_at += now - self._unread_since
            self._unread_since = None
        if has_ended and self._ended_at is None:
            self._ended_at = now
        try:
            next_frame = framing.ends[0][0]
        except IndexError:  # all is delivered
            next_frame = -1
        if next_frame != self._next_frame:
            self._next_frame, self._undelivered_since = next_frame, now

    def has_left(self, now: float) -> bool:
        """Whether the peer is gone and what is left of it will not be read any more."""
        if self._ended_at is None:
            return False
        return now - max(self._ended_at, self._undelivered_since) > self.limits.leave_seconds

    def overdue(self, framing: Framing, now: float) -> str | None:
        """Why not to wait longer: "slow" is the peer's fault, "stuck" means that what it sent stays unread."""
        limits = self.limits
        if self._next_frame >= 0 and now - self._undelivered_since > limits.stuck_seconds:
            return "stuck"
        if self._ended_at is not None:
            return "stuck" if now - self._ended_at > limits.stuck_seconds and self._next_frame < 0 else None
        if self._unread_since is not None:
            return None
        if not framing.is_open:
            return "slow" if now - self._accepted_at > limits.handshake_seconds else None
        if self._message < 0:
            return None
        allowed = limits.slow_seconds + framing.claimed_bytes / limits.slow_bytes_per_second
        return "slow" if now - self._message_since > allowed else None
