"""Chunks of shards → whole snapshots. Pure: no socket, no clock of its own, no asyncio.

Everything a peer may do wrong here is a WireError, raised before anything is allocated or changed for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rankd.config import Limits
from rankd.quota import NO_QUOTA, Quota, namespace_of
from rankd.records import LayerStep, Snapshot
from rankd_client.wire import DTYPES, Chunk, Shard, WireError

LayerRole = tuple[str, str]

_BITS: dict[int, tuple[type[np.unsignedinteger], int]] = {
    2: (np.uint16, 0x7FFF),
    4: (np.uint32, 0x7FFF_FFFF),
    8: (np.uint64, 0x7FFF_FFFF_FFFF_FFFF),
}
MAX_PIECES_PER_LAYER = 1 << 14
"""Rectangles or ranges of all shards of a layer, because a peer may say hello anew for each shard of 1,024 of them, and
each new shard is compared with all there are: 0.1 s at most."""

_INFINITY_BITS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10, "bfloat16": 0xFF << 7}


@dataclass(frozen=True, slots=True)
class Assembled:
    """What one chunk led to: a whole snapshot, a repeat of one taken before (`settled`: and dealt with), or neither."""

    snapshot: Snapshot | None = None
    repeat: bool = False
    settled: bool = False


@dataclass(slots=True)
class _OpenShard:
    shard: Shard
    pieces: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    num_received: int = 0
    largest_bits: int = 0
    """Bit pattern, sign removed, of the largest magnitude so far: ordered like the magnitudes, NaN above Infinity."""

    @property
    def complete(self) -> bool:
        return self.num_received == self.data.nbytes


@dataclass(slots=True)
class _OpenLayer:
    shape: tuple[int, ...]
    dtype: str
    source_dtype: str
    heard_at: float
    shards: dict[bytes, _OpenShard] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        if not all(shard.complete for shard in self.shards.values()):
            return False
        return sum(s.data.nbytes for s in self.shards.values()) == math.prod(self.shape) * DTYPES[self.dtype].item_bytes


@dataclass(slots=True)
class _Run:
    seen_at: float
    newest: dict[LayerRole, int] = field(default_factory=dict)
    """(layer, role) → step of the last snapshot taken."""


class Assemble:
    """Collects the shards of a layer and step until they cover the matrix, and notices what must not be lost.

    A layer whose elements are not all finite, or all zero, is marked here, before newest-wins could displace it.
    """

    def __init__(
        self,
        limits: Limits,
        counters: Counter[str],
        last_steps: Callable[[str], Mapping[LayerRole, int]] = lambda run: {},
        quota: Callable[[str], Quota] = lambda namespace: NO_QUOTA,
    ) -> None:
        """`last_steps`: of a run not known here, the step that is in the history of each of its layers."""
        self.limits = limits
        self.counters = counters
        self.num_bytes = 0
        self._last_steps = last_steps
        self._quota = quota
        self._namespace_bytes: Counter[str] = Counter()
        self._runs: dict[str, _Run] = {}
        self._open: dict[LayerStep, _OpenLayer] = {}
        self._waiting: dict[LayerStep, set[bytes]] = {}

    def add(self, run: str, session: bytes, chunk: Chunk, now: float) -> Assembled:
        """Take one chunk from client `session` at `now` (seconds, monotonic). Raises WireError."""
        known = self._check_run(run, chunk, now)
        key = (run, chunk.layer, chunk.role, chunk.step)
        if known.newest.get((chunk.layer, chunk.role)) == chunk.step or chunk.shard.replica != 0:
            self.counters["num_repeats"] += 1
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.add(session)
            return Assembled(repeat=True, settled=waiting is None)
        layer, shard = self._place(key, session, chunk, now)
        self._runs[run] = known
        self._store(shard, chunk)
        layer.heard_at = now
        if not layer.complete:
            return Assembled()
        self._close(key)
        known.newest[chunk.layer, chunk.role] = chunk.step
        # The same step twice, where the run went back in between: whoever sent it first waits as well.
        self._waiting.setdefault(key, set()).update(layer.shards)
        return Assembled(snapshot=_snapshot(key, layer))

    def settle(self, key: LayerStep) -> set[bytes]:
        """The sessions that wait to hear what became of a snapshot (recorded or superseded)."""
        return self._waiting.pop(key, set())

    def expire(self, now: float) -> Iterator[tuple[LayerStep, set[bytes]]]:
        """Give up layers whose shards did not all come in time; yields each with the sessions that sent a part."""
        limit = now - self.limits.assembly_timeout_seconds
        for key in [key for key, layer in self._open.items() if layer.heard_at < limit]:
            self.counters["dropped_timed_out"] += 1
            yield key, set(self._close(key).shards)

    def idle_run(self, now: float, connected: Set[str] = frozenset()) -> str | None:
        """The longest-silent run that is not `connected`, if there is no room for another and it has been silent long
        enough."""
        if len(self._runs) < self.limits.max_runs:
            return None
        oldest = min(self._runs.keys() - connected, key=lambda name: self._runs[name].seen_at, default=None)
        if oldest is None or now - self._runs[oldest].seen_at <= self.limits.run_idle_seconds:
            return None
        return oldest

    def forget(self, run: str) -> None:
        self._runs.pop(run, None)
        for key in [key for key in self._open if key[0] == run]:
            self._close(key)

    def _check_run(self, run: str, chunk: Chunk, now: float) -> _Run:
        """What is known of `run`; a new one takes its place only with the first chunk that is kept."""
        known = self._runs.get(run)
        if known is None:
            self._check_room_for_run(run)
            known = _Run(now, dict(self._last_steps(run)))
        known.seen_at = now
        if (chunk.layer, chunk.role) not in known.newest and len(known.newest) >= self.limits.max_layers_per_run:
            raise WireError("too_many_layers", f"run has {len(known.newest)}; at most {self.limits.max_layers_per_run}")
        return known

    def _check_room_for_run(self, run: str) -> None:
        if len(self._runs) >= self.limits.max_runs:
            raise WireError("too_many_runs", f"{len(self._runs)} runs; at most {self.limits.max_runs}")
        namespace = namespace_of(run)
        max_runs = self._quota(namespace).max_runs
        if max_runs is not None and sum(namespace_of(name) == namespace for name in self._runs) >= max_runs:
            raise WireError("quota_exceeded", f"namespace {namespace!a} has {max_runs} runs, which is its quota")

    def _place(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> tuple[_OpenLayer, _OpenShard]:
        """The open layer and shard that `chunk` belongs to, opened if it is their first."""
        layer = self._open.get(key)
        if chunk.offset:
            shard = layer.shards.get(session) if layer else None
            if layer is None or shard is None or not _same_shard(layer, shard, chunk):
                raise WireError("chunk_order", f"layer {chunk.layer!a} offset {chunk.offset}; expected offset 0")
            if chunk.offset != shard.num_received:
                raise WireError("chunk_order", f"offset {chunk.offset}; expected {shard.num_received}")
            return layer, shard
        self._abandon(key, session)
        self._check_room(key[0], chunk)
        layer = self._open.get(key)
        if layer is None:
            layer = _OpenLayer(chunk.shape, chunk.dtype, chunk.source_dtype, now)
        elif (layer.shape, layer.dtype) != (chunk.shape, chunk.dtype) or not _fits(layer, chunk.shard):
            raise WireError("shard_conflict", f"layer {chunk.layer!a} step {chunk.step}: shards disagree or overlap")
        shard = _OpenShard(chunk.shard, _pieces(chunk.shard), np.empty(chunk.total_bytes, np.uint8))
        self._count(key[0], chunk.total_bytes)
        self._open[key] = layer
        layer.shards[session] = shard
        return layer, shard

    def _check_room(self, run: str, chunk: Chunk) -> None:
        num_bytes = math.prod(chunk.shape) * chunk.item_bytes
        if num_bytes > self.limits.max_layer_bytes:
            raise WireError("layer_too_large", f"{num_bytes} bytes; at most {self.limits.max_layer_bytes}")
        full = self.num_bytes + chunk.total_bytes > self.limits.max_assembly_bytes
        if full or len(self._open) >= self.limits.max_open_layers:
            raise WireError("assembly_full", f"{len(self._open)} unfinished layers of {self.num_bytes} bytes")
        namespace = namespace_of(run)
        max_bytes = self._quota(namespace).max_bytes
        if max_bytes is not None and self._namespace_bytes[namespace] + chunk.total_bytes > max_bytes:
            raise WireError("quota_exceeded", f"namespace {namespace!a} has a quota of {max_bytes} bytes in memory")

    def _count(self, run: str, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        namespace = namespace_of(run)
        self._namespace_bytes[namespace] += num_bytes
        if not self._namespace_bytes[namespace]:
            del self._namespace_bytes[namespace]

    def _store(self, shard: _OpenShard, chunk: Chunk) -> None:
        end = chunk.offset + len(chunk.payload)
        shard.data[chunk.offset : end] = np.frombuffer(chunk.payload, np.uint8)
        shard.num_received = end
        bits, mask = _BITS[chunk.item_bytes]
        largest = int((shard.data[chunk.offset : end].view(bits) & bits(mask)).max())
        shard.largest_bits = max(shard.largest_bits, largest)

    def _abandon(self, key: LayerStep, session: bytes) -> None:
        """A client that starts a shard has given up the unfinished ones it had of that layer (it sends newest only)."""
        for other in [k for k, layer in self._open.items() if k[:3] == key[:3] and session in layer.shards]:
            shard = self._open[other].shards[session]
            if other == key or not shard.complete:
                del self._open[other].shards[session]
                self._count(key[0], -shard.data.nbytes)
                if not self._open[other].shards:
                    del self._open[other]

    def _close(self, key: LayerStep) -> _OpenLayer:
        layer = self._open.pop(key)
        self._count(key[0], -sum(shard.data.nbytes for shard in layer.shards.values()))
        return layer


def _same_shard(layer: _OpenLayer, shard: _OpenShard, chunk: Chunk) -> bool:
    return (layer.shape, layer.dtype, layer.source_dtype, shard.shard, shard.data.nbytes) == (
        chunk.shape,
        chunk.dtype,
        chunk.source_dtype,
        chunk.shard,
        chunk.total_bytes,
    )


def _fits(layer: _OpenLayer, shard: Shard) -> bool:
    """Whether `shard` can stand beside the layer's others: the same kind of cut, and no element in common."""
    others = layer.shards.values()
    if any(other.shard.whole or shard.whole or bool(other.shard.ranges) != bool(shard.ranges) for other in others):
        return False
    taken = np.concatenate([np.empty((0, 4), np.int64), *(other.pieces for other in others)])
    new = _pieces(shard)
    if len(taken) + len(new) > MAX_PIECES_PER_LAYER:
        raise WireError("assembly_full", f"{len(taken) + len(new)} pieces in a layer; at most {MAX_PIECES_PER_LAYER}")
    (r0, r1, c0, c1), (s0, s1, d0, d1) = new.T[:, :, None], taken.T
    return not ((r0 < s1) & (s0 < r1) & (c0 < d1) & (d0 < c1)).any()


def _pieces(shard: Shard) -> npt.NDArray[np.int64]:
    """n × 4: rectangles, or flat ranges as rectangles of one row; none for the whole matrix."""
    pieces = shard.rectangles or [(0, 1, start, end) for start, end in shard.ranges]
    return np.array(pieces, np.int64).reshape(-1, 4)


def _snapshot(key: LayerStep, layer: _OpenLayer) -> Snapshot:
    run, name, role, step = key
    largest_bits = max(shard.largest_bits for shard in layer.shards.values())
    finite = largest_bits < _INFINITY_BITS[layer.dtype]
    zero = largest_bits == 0
    data = _joined(layer) if finite and not zero else np.empty(0, np.uint8)
    return Snapshot(
        run=run,
        layer=name,
        step=step,
        shape=layer.shape,
        wire_dtype=layer.dtype,
        source_dtype=layer.source_dtype or layer.dtype,
        data=data,
        role=role,
        finite=finite,
        zero=zero,
    )


def _joined(layer: _OpenLayer) -> npt.NDArray[np.uint8]:
    """The whole matrix's bytes. One shard that is the whole is handed on as it is, without a copy."""
    first = next(iter(layer.shards.values()))
    if first.shard.whole:
        return first.data
    bits, _ = _BITS[DTYPES[layer.dtype].item_bytes]
    matrix = np.empty((layer.shape[0], math.prod(layer.shape[1:])), bits)
    flat = matrix.reshape(-1)
    for shard in layer.shards.values():
        source, at = shard.data.view(bits), 0
        for start, end in shard.shard.ranges:
            flat[start:end] = source[at : at + end - start]
            at += end - start
        for r0, r1, c0, c1 in shard.shard.rectangles:
            size = (r1 - r0) * (c1 - c0)
            matrix[r0:r1, c0:c1] = source[at : at + size].reshape(r1 - r0, c1 - c0)
            at += size
    return flat.view(np.uint8)
