"""Matrices out of the parts that the processes of a job wrote. Pure.

A daemon could do this too, with a connection for each process. Here it is one connection for a job, however many
processes it had, and no step of which the daemon has one part and knows nothing of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rankd_client.wire import DTYPES, Chunk, Shard, disjoint

Part = tuple[Chunk, bytearray]
"""A shard as its first chunk has it, and all of its bytes."""


def are_whole(chunks: Sequence[Chunk]) -> bool:
    """Whether these shards of one layer and step are all of its matrix, without one element twice."""
    first = chunks[0]
    if any((chunk.shape, chunk.dtype) != (first.shape, first.dtype) for chunk in chunks):
        return False
    if len(chunks) == 1:
        return first.shard.num_elements(first.shape) == math.prod(first.shape)
    if len({bool(chunk.shard.ranges) for chunk in chunks}) > 1 or any(chunk.shard.whole for chunk in chunks):
        return False
    num_elements = sum(chunk.shard.num_elements(chunk.shape) for chunk in chunks)
    return num_elements == math.prod(first.shape) and disjoint(
        piece for chunk in chunks for piece in _rectangles(chunk.shard)
    )


def joined(parts: Sequence[Part]) -> Part:
    """The whole matrix; of one part that is the whole, its bytes without a copy. They are checked (`are_whole`)."""
    first, body = parts[0]
    if first.shard.whole:
        return first, body
    rows, cols, dtype = first.shape[0], math.prod(first.shape[1:]), DTYPES[first.dtype]
    row_bytes = dtype.num_bytes(cols, first.shape)
    whole = bytearray(rows * row_bytes)
    flat = np.frombuffer(whole, np.uint8)
    matrix = flat.reshape(rows, row_bytes)
    for chunk, content in parts:
        source, at = np.frombuffer(content, np.uint8), 0
        for start, end in chunk.shard.ranges:  # of dtypes without scales alone
            num_bytes = (end - start) * dtype.item_bytes
            flat[start * dtype.item_bytes : end * dtype.item_bytes] = source[at : at + num_bytes]
            at += num_bytes
        for row, row_end, col, col_end in chunk.shard.rectangles:
            left, right = (0, row_bytes) if dtype.scaled else (col * dtype.item_bytes, col_end * dtype.item_bytes)
            num_bytes = (row_end - row) * (right - left)
            matrix[row:row_end, left:right] = source[at : at + num_bytes].reshape(row_end - row, right - left)
            at += num_bytes
    return _as_whole(first, len(whole)), whole


def _as_whole(chunk: Chunk, total_bytes: int) -> Chunk:
    return Chunk(
        layer=chunk.layer,
        step=chunk.step,
        dtype=chunk.dtype,
        shape=chunk.shape,
        total_bytes=total_bytes,
        offset=0,
        payload=b"",
        role=chunk.role,
        source_dtype=chunk.source_dtype,
    )


def _rectangles(shard: Shard) -> Sequence[tuple[int, int, int, int]]:
    return shard.rectangles or [(0, 1, start, end) for start, end in shard.ranges]
