"""The messages of a push connection, as frozen data. Fields are documented in docs/protocol.md, in the same order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankd_client.wire.dtypes import DTYPES
from rankd_client.wire.limits import PROTOCOL_VERSION

Payload = bytes | bytearray | memoryview
"""A memoryview is one of bytes (format "B"), contiguous."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Client → daemon, first on every connection. `session` is 16 random bytes that name the client over reconnects."""

    run: str
    session: bytes
    version: int = PROTOCOL_VERSION
    agent: str = ""
    process_rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Daemon → client: which steps and layers to push from step `first_step` on. Zero every_steps: the client's own."""

    plan_id: int = 0
    first_step: int = 0
    every_steps: int = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """Daemon → client, the answer to a hello. `credit_bytes` of payload may be sent at once."""

    stream_id: str
    credit_bytes: int
    chunk_bytes: int
    heartbeat_seconds: float
    version: int = PROTOCOL_VERSION
    plan: Plan = field(default_factory=Plan)
    arena_socket: str = ""
    """File name of the unix socket, beside the push socket, to lend memory at; "": there is none."""
    arena_token: str = ""
    """Says there which connection the memory belongs to."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a matrix (size(0), -1) that one process holds, as rectangles `[row, row_end, col, col_end)` or as
    flat `[start, end)` element ranges, row-major and in payload order; with neither, the whole matrix."""

    rectangles: tuple[tuple[int, int, int, int], ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    replica: int = 0

    @property
    def whole(self) -> bool:
        return not self.rectangles and not self.ranges

    def has_whole_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether it is made of rows of the matrix, none of them in part."""
        cols = math.prod(shape[1:])
        return not self.ranges and all((c0, c1) == (0, cols) for _, _, c0, c1 in self.rectangles)

    def num_elements(self, shape: tuple[int, ...]) -> int:
        if self.rectangles:
            return sum((r1 - r0) * (c1 - c0) for r0, r1, c0, c1 in self.rectangles)
        if self.ranges:
            return sum(end - start for start, end in self.ranges)
        return math.prod(shape)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Client → daemon: bytes `[offset, offset + len(payload))` of one shard of one tensor at one step.

    `total_bytes` is the size of the whole shard. `dtype` and `source_dtype` are names; only `dtype` is interpreted.
    """

    layer: str
    step: int
    dtype: str
    shape: tuple[int, ...]
    total_bytes: int
    offset: int
    payload: Payload = field(repr=False)
    role: str = "weight"
    source_dtype: str = ""
    shard: Shard = field(default_factory=Shard)

    @property
    def last(self) -> bool:
        return self.offset + len(self.payload) == self.total_bytes

    @property
    def item_bytes(self) -> int:
        return DTYPES[self.dtype].item_bytes


@dataclass(frozen=True, slots=True)
class Lent:
    """Client → daemon, from version 3 on: a chunk whose payload, bytes `[at, at + num_bytes)` of a lent block, the
    daemon reads itself. The `payload` of `chunk` is empty; the memory is lent until the chunk is received or refused.
    """

    chunk: Chunk
    block: int
    at: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Reported:
    """Client → daemon, from version 3 on: numbers of one layer at one step that the trainer computed itself. `body` has
    keys of a measurement's JSON row; it costs credit by its bytes, like a payload. Several of a layer may be on their
    way; `again`: it was sent before over another connection, so that a step not after the newest one is no return."""

    layer: str
    step: int
    body: Mapping[str, Any]
    role: str = "weight"
    again: bool = False
    num_bytes: int = field(default=0, compare=False)
    """Of the body's frame, where it came from one."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Daemon → client. state "received": `credit_bytes` may be sent again; "recorded": the snapshot is measured and
    kept; "superseded": it will not be measured, because that of step `by_step` (None: want of room) came."""

    state: str
    layer: str
    step: int
    role: str = "weight"
    credit_bytes: int = 0
    by_step: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Daemon → client: rule `code` was broken. With a layer and step, that snapshot is dropped and is not to be sent
    again; without, the whole connection has to say hello anew. Credit comes back as in an Ack."""

    code: str
    detail: str
    layer: str | None = None
    step: int | None = None
    role: str = "weight"
    credit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AlertNotice:
    """Daemon → client: an alert of the client's run, the same map as on the alert stream."""

    alert: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Both ways: I am alive. Silence of three intervals means the peer is gone. `stats`, of a client: what pushing
    costs, and how old each layer's newest snapshot is."""

    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bye:
    """Both ways: I am leaving on purpose."""


Message = Hello | Plan | Welcome | Chunk | Lent | Reported | Ack | Refusal | AlertNotice | Heartbeat | Bye
