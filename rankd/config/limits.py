"""What peers may make the daemon hold, and how long things may take."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rankd.config.error import ConfigError
from rankd_client.wire import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

MAX_RUNS = 4096
"""One heartbeat may have to name them all, 0.6 kB each with the longest names, in a body of 4 MiB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may make the daemon hold, and how long things may take."""

    credit_bytes: int = 16 << 20
    """Payload one connection may have under way: one chunk on its way while the other is taken in. Connections that
    come when most is granted get less, down to one chunk of 4 MiB."""

    total_credit_bytes: int = 1 << 30
    """Credit of all connections together: what may lie in receive queues at worst. Bounds the number of connections."""

    max_connections: int = 1024
    """Of each socket. Pushing ones also need credit, 4 MiB each at least."""

    max_connections_per_peer: int = 256
    """Of one address (a host, or all that come through one gateway), over ipc of one user; for each socket."""

    max_lent_bytes: int = 64 << 30
    """Memory of clients on this host that is mapped to be read, of all together. It is theirs, but page tables for it
    take 2 MiB for each GiB here, and none of it is freed while it is mapped."""

    max_lent_bytes_per_connection: int = 16 << 30
    """An arena has twice what one push takes, 128 MiB unless the trainer asks for more."""

    chunk_bytes: int = DEFAULT_CHUNK_BYTES

    max_layer_bytes: int = 1 << 30
    """One matrix: a 128k × 4k embedding in bfloat16."""

    max_assembly_bytes: int = 2 << 30
    """Unfinished layers of all peers together; at least two of the largest."""

    max_open_layers: int = 16_384
    """Unfinished layers by number, because a shard may be tiny."""

    max_open_pieces: int = 1 << 20
    """Rectangles and ranges of all shards of unfinished layers, for the same reason: up to 1 kB each. A job of 512
    processes, each with one piece of 300 layers, has 153,600."""

    assembly_timeout_seconds: float = 60.0
    """An unfinished layer of which nothing came for so long stays unfinished: a process is gone or at another step."""

    max_mailbox_bytes: int = 1 << 30
    """Snapshots that wait for measuring. Newest wins before this is reached unless many large layers are watched."""

    max_runs: int = 1024
    """At most MAX_RUNS."""
    max_layers_per_run: int = 16_384
    max_layers: int = 262_144
    """Of all runs together: each holds 6 kB of detector state and firing alerts at worst, 1.5 GiB in all. A run that is
    read back from the history comes whole, and may exceed it by its own."""

    run_idle_seconds: float = 3600.0
    """A run that has been silent this long gives up its place when room is wanted for another."""

    max_recent_alerts: int = 10_000
    max_recent_measurements: int = 16_384
    """Events kept for subscribers that missed some; about 1 kB each."""

    heartbeat_seconds: float = 1.0
    peer_timeout_seconds: float = 30.0
    """A connection silent for this long is forgotten and its credit given back; its client will say hello again."""

    trainer_grace_seconds: float = 10.0
    """A trainer whose connection broke has this long to come back before it counts as gone: a client is back within a
    second or two."""

    drain_seconds: float = 15.0
    """Clean shutdown has 20 s; the rest is for saying goodbye."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            wanted = float if item.name.endswith("_seconds") else int
            if isinstance(value, bool) or not isinstance(value, int | wanted) or not value > 0:
                raise ConfigError(f"limits.{item.name}={value!r}: expected a positive {wanted.__name__}")
        if not MIN_CHUNK_BYTES <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise ConfigError(
                f"limits.chunk_bytes={self.chunk_bytes}: expected {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes"
            )
        if not 0.01 <= self.heartbeat_seconds <= 3600:
            raise ConfigError(f"limits.heartbeat_seconds={self.heartbeat_seconds}: expected 0.01 to 3600 seconds")
        if self.max_runs > MAX_RUNS:
            raise ConfigError(f"limits.max_runs={self.max_runs}: expected at most {MAX_RUNS}")
        if self.peer_timeout_seconds < 3 * self.heartbeat_seconds:
            raise ConfigError(
                f"limits.peer_timeout_seconds={self.peer_timeout_seconds}: expected at least three times "
                f"limits.heartbeat_seconds={self.heartbeat_seconds}"
            )
        for smaller, larger in (
            ("chunk_bytes", "credit_bytes"),
            ("credit_bytes", "total_credit_bytes"),
            ("max_layer_bytes", "max_assembly_bytes"),
            ("max_layer_bytes", "max_mailbox_bytes"),
            ("max_connections_per_peer", "max_connections"),
            ("max_lent_bytes_per_connection", "max_lent_bytes"),
            ("max_layers_per_run", "max_layers"),
        ):
            if getattr(self, smaller) > getattr(self, larger):
                raise ConfigError(
                    f"limits.{smaller}={getattr(self, smaller)}: expected at most limits.{larger}"
                    f"={getattr(self, larger)}"
                )
