"""What one listener of the gate lets its peers do, each limit with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from rankd_client.wire import MAX_CHUNK_BYTES

MAX_HEADER_BYTES = 64 << 10
"""Of a message's header frame (docs/protocol.md)."""

MAX_COMMAND_BYTES = 4 << 10
"""Of a ZMTP command. A handshake's has some 100 bytes; with CURVE and metadata some 500."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Sizes are those of ZMTP frames without their headers. With CURVE the edges of messages cannot be seen: there a
    frame counts as a message, and `window_bytes` bounds how much of one waits."""

    max_frame_bytes: int
    max_frames: int
    """Of one message; somewhat more than the protocol has, so that mistakes are answered with their code. libzmq bounds
    each frame but not how many a message has, and collects it in memory."""

    window_bytes: int
    """Taken from one peer and not yet read by the daemon. At least one message; beyond it nothing is read from that
    peer, and nothing is lost."""

    max_total_bytes: int
    """The same for all peers of the listener together."""

    window_frames: int = 1024
    """As `window_bytes`, in frames: an empty one has 2 bytes, and 64 in libzmq's memory."""

    max_connections: int = 1024
    max_connections_per_peer: int = 256
    """By user id or IP address. A host with eight processes of 32 jobs. Where a limit is reached, the oldest connection
    that has not finished its handshake makes way; those whose peer has left are not counted. Configured: Limits."""

    max_subscriptions: int = 0
    """0: the listener takes messages; else it takes subscriptions and nothing else."""

    max_subscription_bytes: int = 8 << 10
    """What a subscriber may send in its life; a subscription has 12 bytes and its topic."""

    max_all_subscription_bytes: int = 64 << 10
    """The same for all subscribers that are there: whenever one leaves, libzmq walks over every byte of every topic,
    some 0.1 µs for each and more for topics made for it, while the daemon waits."""

    connections_per_second: float = 25.0
    """That reach libzmq, after a first burst of ten times as many; others wait, unheard. The daemon reads all it is
    sent in turn: who connects anew for every hundred messages must not bring more than it can read."""

    handshake_seconds: float = 5.0
    """From accepting a connection until its ZMTP handshake is through our hands."""

    slow_seconds: float = 30.0
    slow_bytes_per_second: float = 100e3
    """A message must be there after `slow_seconds` and the time its bytes take at this rate. Time in which we did not
    read is not counted."""

    stuck_seconds: float = 300.0
    """Longest time that what a peer sent lies unread, after which the connection ends: with CURVE the daemon may wait
    for the rest of a message that we do not let in."""

    leave_seconds: float = 5.0
    """When the peer has left and for so long nothing more of what it sent was read, nothing more will be: libzmq keeps
    some to itself, such as a CURVE message whose last frame never came."""

    def __post_init__(self) -> None:
        if self.window_bytes < self.max_message_bytes:
            raise ValueError(f"window_bytes={self.window_bytes}: expected at least a message, {self.max_message_bytes}")
        if self.max_total_bytes < self.window_bytes:
            raise ValueError(f"max_total_bytes={self.max_total_bytes}: expected at least {self.window_bytes}")

    @property
    def max_message_bytes(self) -> int:
        """One frame of the largest kind, the others headers; each with 9 bytes of ZMTP."""
        return self.max_frame_bytes + (self.max_frames - 1) * MAX_HEADER_BYTES + 9 * self.max_frames


def push_limits(credit_bytes: int, total_credit_bytes: int) -> GateLimits:
    """Clients that keep to their credit are never made to wait: headers and heartbeats come on top of it."""
    slack = MAX_CHUNK_BYTES + (1 << 20)
    return GateLimits(
        max_frame_bytes=MAX_CHUNK_BYTES,
        max_frames=4,
        window_bytes=credit_bytes + slack,
        max_total_bytes=total_credit_bytes + total_credit_bytes // 8 + slack,
    )


ALERTS_LIMITS = GateLimits(
    max_frame_bytes=512,
    max_frames=1,
    window_bytes=64 << 10,
    max_total_bytes=16 << 20,
    max_subscriptions=1000,
)
QUERY_LIMITS = GateLimits(
    max_frame_bytes=MAX_HEADER_BYTES, max_frames=3, window_bytes=256 << 10, max_total_bytes=64 << 20
)
