"""One tensor's copy at one step, on its way: where it lies, and who still reads or writes it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from rankd_client.arena import Region
from rankd_client.wire import Chunk, Shard

Key = tuple[str, str]
"""(layer, role)"""

WHOLE = Shard()


class Tracker(Protocol):
    """Of zmq.MessageTracker, what is needed: whether ZeroMQ is done with a message's memory."""

    @property
    def done(self) -> bool: ...


class Arrival(Protocol):
    """Of a copy that goes on after `push` has returned: whether it is whole, and its dtype then, if that is another
    than was asked for."""

    @property
    def done(self) -> bool: ...
    @property
    def dtype(self) -> str | None: ...


@dataclass(slots=True, eq=False)
class Snapshot:
    """Of a tensor, or of a shard of it. `sent_bytes` counts from 0 again when it has to be sent anew.
    `arrival`: by whom it is told that the copy is whole; None: it is."""

    layer: str
    step: int
    region: Region
    shape: tuple[int, ...]
    dtype: str = ""
    source_dtype: str = ""
    role: str = "weight"
    shard: Shard = WHOLE
    written: bool = False
    arrival: Arrival | None = None
    sent_bytes: int = 0
    trackers: list[Tracker] = field(default_factory=list)
    order: int = 0
    """Its place among all that this process has to send."""
    num_returns: int = 0
    """How often its layer had gone back."""

    @property
    def key(self) -> Key:
        return self.layer, self.role

    @property
    def num_bytes(self) -> int:
        return self.region.num_bytes

    def held(self) -> bool:
        """Whether ZeroMQ may still read the region, or a GPU write it."""
        self.trackers = [tracker for tracker in self.trackers if not tracker.done]
        return bool(self.trackers) or not self.arrived()

    def arrived(self) -> bool:
        if self.arrival is not None and self.arrival.done:
            self.dtype = self.arrival.dtype or self.dtype
            self.arrival = None
        return self.arrival is None

    def next_chunk(self, num_bytes: int) -> Chunk:
        """The next `num_bytes` to send; the payload is the arena's memory itself."""
        start = self.sent_bytes
        return Chunk(
            layer=self.layer,
            step=self.step,
            role=self.role,
            dtype=self.dtype,
            source_dtype=self.source_dtype,
            shape=self.shape,
            shard=self.shard,
            total_bytes=self.num_bytes,
            offset=start,
            payload=self.region.view[start : start + num_bytes],
        )
