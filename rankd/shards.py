"""One layer of one step, as its shards come: what fits, what is complete, and the matrix that they make. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from rankd.buffers import buffers
from rankd.records import LayerStep, Snapshot
from rankd.scaled import largest_magnitude
from rankd.spread import Helpers
from rankd_client.wire import DTYPES, Chunk, Dtype, Shard, WireError, row_elements

_UNSIGNED: dict[int, type[np.unsignedinteger]] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_SIGNED: dict[int, type[np.signedinteger]] = {2: np.int16, 4: np.int32, 8: np.int64}
_INFINITY_BITS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10, "bfloat16": 0xFF << 7}

MAX_PIECES_PER_LAYER = 1 << 14
"""Rectangles or ranges of all shards of a layer, because a peer may say hello anew for each shard of 1,024 of them, and
each new shard is compared with all there are: 0.1 s at most."""

PIECE_BYTES = 512 << 10
"""Of a chunk, copied and looked at before the next: it is in the core's own cache still. A multiple of every dtype's
size."""

helpers = Helpers()


@dataclass(slots=True)
class OpenShard:
    """The bytes of one client's part, from the first on; `row_bytes`, with the scale, of a dtype that has some."""

    shard: Shard
    data: npt.NDArray[np.uint8]
    row_bytes: int = 0
    num_received: int = 0
    finite: bool = True
    zero: bool = True
    """Of the elements so far; of rows with a scale, of the whole ones."""

    @property
    def complete(self) -> bool:
        return self.num_received == self.data.nbytes

    def store(self, chunk: Chunk) -> None:
        """Take the next bytes."""
        start, end = self.num_received, chunk.offset + len(chunk.payload)
        payload = np.frombuffer(chunk.payload, np.uint8)
        self.num_received = end
        if self.row_bytes:
            self.data[start:end] = payload
            whole = self.data[start // self.row_bytes * self.row_bytes : end // self.row_bytes * self.row_bytes]
            largest = largest_magnitude(whole.reshape(-1, self.row_bytes), chunk.dtype) if len(whole) else 0.0
            self.finite &= math.isfinite(largest)
            self.zero &= largest == 0
            return
        copy = partial(_copy, self.data, payload, start, chunk.item_bytes)
        largest_bits = max(helpers.spread(start, end, PIECE_BYTES, copy))
        self.finite &= largest_bits < _INFINITY_BITS[chunk.dtype]
        self.zero &= largest_bits == 0


def _copy(
    target: npt.NDArray[np.uint8], payload: npt.NDArray[np.uint8], offset: int, item_bytes: int, start: int, end: int
) -> int:
    """Bytes `[start, end)` of `target`, which has `payload` at `offset`. Returns the largest bits of them, less the
    sign."""
    largest_bits = 0
    for at in range(start, end, PIECE_BYTES):
        piece = target[at : min(end, at + PIECE_BYTES)]
        piece[:] = payload[at - offset : at - offset + len(piece)]
        largest_bits = max(largest_bits, largest_without_sign(piece, item_bytes))
    return largest_bits


def largest_without_sign(data: npt.NDArray[np.uint8], item_bytes: int) -> int:
    """The largest bit pattern of floats, less its sign. These are ordered like the magnitudes, NaN above Infinity.

    Of two reductions, as nothing has to be written: as unsigned integers, what has a sign is above all that has none;
    as signed ones, it is below.
    """
    negative = int(data.view(_UNSIGNED[item_bytes]).max())
    sign = 1 << (8 * item_bytes - 1)
    if negative < sign:  # there are none
        return negative
    return max(negative - sign, int(data.view(_SIGNED[item_bytes]).max()))


@dataclass(slots=True)
class OpenLayer:
    """`shards` by the session of the client that sends each; `heard_at` is when the last bytes came."""

    shape: tuple[int, ...]
    dtype: str
    source_dtype: str
    heard_at: float
    shards: dict[bytes, OpenShard] = field(default_factory=dict)
    num_bytes: int = 0
    """Of all shards, and how many of them came:"""
    num_received: int = 0
    is_back: bool = False
    """Begun by a client that went back to a checkpoint: what others have sent of later steps says nothing about it."""
    _pieces: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 4), np.int64))
    """n × 4, of all shards: rectangles, or flat ranges as rectangles of one row; none of a whole matrix."""

    @property
    def complete(self) -> bool:
        return self.num_received == self._dtype.num_bytes(math.prod(self.shape), self.shape)

    @property
    def _dtype(self) -> Dtype:
        return DTYPES[self.dtype]

    @property
    def is_shared(self) -> bool:
        """Whether it takes several clients to make it."""
        return len(self._pieces) > 0

    @property
    def num_pieces(self) -> int:
        """A whole matrix counts as one."""
        return max(len(self._pieces), len(self.shards))

    def continues(self, shard: OpenShard, chunk: Chunk) -> bool:
        """Whether `chunk` speaks of the same shard as those before it."""
        return (self.shape, self.dtype, self.source_dtype, shard.shard, shard.data.nbytes) == (
            chunk.shape,
            chunk.dtype,
            chunk.source_dtype,
            chunk.shard,
            chunk.total_bytes,
        )

    def check(self, chunk: Chunk) -> None:
        """Raises WireError where a shard that begins with `chunk` cannot stand beside the others: another kind of
        matrix or of cut, an element in common, or too many pieces."""
        if (self.shape, self.dtype) != (chunk.shape, chunk.dtype) or not self._fits(chunk.shard):
            raise WireError("shard_conflict", f"layer {chunk.layer!a} step {chunk.step}: shards disagree or overlap")

    def open(self, session: bytes, chunk: Chunk) -> None:
        """Begin the shard whose first bytes are `chunk`, which was checked."""
        row_bytes = self._dtype.num_bytes(row_elements(self.shape), self.shape) if self._dtype.scaled else 0
        self.shards[session] = OpenShard(chunk.shard, buffers.empty(chunk.total_bytes), row_bytes)
        self.num_bytes += chunk.total_bytes
        self._pieces = np.concatenate([self._pieces, _pieces(chunk.shard)])

    def store(self, session: bytes, chunk: Chunk) -> None:
        """Take the next bytes of a shard that is open."""
        self.shards[session].store(chunk)
        self.num_received += len(chunk.payload)

    def drop(self, session: bytes) -> None:
        """Give up a shard."""
        shard = self.shards.pop(session)
        self.num_bytes -= shard.data.nbytes
        self.num_received -= shard.num_received
        cols = math.prod(self.shape[1:])
        first, gone = (at[:, 0] * cols + at[:, 2] for at in (self._pieces, _pieces(shard.shard)))
        self._pieces = self._pieces[~np.isin(first, gone)]  # they overlap nowhere: a first element names one

    def snapshot(self, key: LayerStep) -> Snapshot:
        """Of a complete layer. One that is not finite or all zero comes without its bytes."""
        run, name, role, step = key
        finite = all(shard.finite for shard in self.shards.values())
        zero = all(shard.zero for shard in self.shards.values())
        return Snapshot(
            run=run,
            layer=name,
            step=step,
            shape=self.shape,
            wire_dtype=self.dtype,
            source_dtype=self.source_dtype or self.dtype,
            data=self._joined() if finite and not zero else np.empty(0, np.uint8),
            role=role,
            finite=finite,
            zero=zero,
        )

    def _fits(self, shard: Shard) -> bool:
        """All that are open are of one kind, so that one of them stands for all."""
        other = next(iter(self.shards.values()), None)
        if other is None:
            return True
        if other.shard.whole or shard.whole or bool(other.shard.ranges) != bool(shard.ranges):
            return False
        new = _pieces(shard)
        num_pieces = len(self._pieces) + len(new)
        if num_pieces > MAX_PIECES_PER_LAYER:
            raise WireError("assembly_full", f"{num_pieces} pieces in a layer; at most {MAX_PIECES_PER_LAYER}")
        if shard.ranges:
            starts, ends = np.sort(np.concatenate([self._pieces, new])[:, 2:], axis=0).T
            return bool((ends[:-1] <= starts[1:]).all())
        (r0, r1, c0, c1), (s0, s1, d0, d1) = new.T[:, :, None], self._pieces.T
        return not ((r0 < s1) & (s0 < r1) & (c0 < d1) & (d0 < c1)).any()

    def _joined(self) -> npt.NDArray[np.uint8]:
        """The whole matrix's bytes. One shard that is the whole is handed on as it is, without a copy."""
        first = next(iter(self.shards.values()))
        if first.shard.whole:
            return first.data
        rows, cols = self.shape[0], math.prod(self.shape[1:])
        if self._dtype.scaled:  # all of it whole rows, and what is in them need not be known
            row_bytes = self._dtype.num_bytes(cols, self.shape)
            return self._stacked(buffers.empty(rows * row_bytes).reshape(rows, row_bytes))
        bits = _UNSIGNED[self._dtype.item_bytes]
        flat = buffers.empty(rows * cols * self._dtype.item_bytes).view(bits)
        matrix = flat.reshape(rows, cols)
        for shard in self.shards.values():
            source, at = shard.data.view(bits), 0
            for start, end in shard.shard.ranges:
                flat[start:end] = source[at : at + end - start]
                at += end - start
            for r0, r1, c0, c1 in shard.shard.rectangles:
                size = (r1 - r0) * (c1 - c0)
                matrix[r0:r1, c0:c1] = source[at : at + size].reshape(r1 - r0, c1 - c0)
                at += size
        return flat.view(np.uint8)

    def _stacked(self, matrix: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        for shard in self.shards.values():
            rows, at = shard.data.reshape(-1, matrix.shape[1]), 0
            for start, end, *_ in shard.shard.rectangles:
                matrix[start:end] = rows[at : at + end - start]
                at += end - start
        return matrix.reshape(-1)


def _pieces(shard: Shard) -> npt.NDArray[np.int64]:
    pieces = shard.rectangles or [(0, 1, start, end) for start, end in shard.ranges]
    return np.array(pieces, np.int64).reshape(-1, 4)
