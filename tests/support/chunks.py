"""Chunks as clients send them, and what becomes of them in Assemble."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from rankd.config import Limits
from rankd.stages.assemble import Assemble
from rankd_client.wire import DTYPES, Chunk, Shard

A, B = b"a" * 16, b"b" * 16
FLOATS = ("float64", "float32", "float16", "bfloat16")
HALF = Shard(ranges=((0, 2),))
"""Of a matrix of four elements."""


def assembler(**limits: Any) -> Assemble:
    return Assemble(Limits(**limits), Counter())


def chunk(payload: bytes, shape: tuple[int, ...], **fields: Any) -> Chunk:
    shard = fields.setdefault("shard", Shard())
    fields = {"layer": "w", "step": 1, "dtype": "float32", "offset": 0, **fields}
    total_bytes = DTYPES[fields["dtype"]].num_bytes(shard.num_elements(shape), shape)
    return Chunk(shape=shape, total_bytes=total_bytes, payload=payload, **fields)


def cut(payload: bytes, shape: tuple[int, ...], size: int, **fields: Any) -> Iterator[Chunk]:
    for start in range(0, len(payload), size):
        yield chunk(payload[start : start + size], shape, offset=start, **fields)


def ones(num_elements: int) -> bytes:
    return np.ones(num_elements, np.float32).tobytes()


def steps_taken(assemble: Assemble, chunks: list[Chunk], session: bytes = A) -> list[int]:
    added = [assemble.add("r", session, item, 0.0) for item in chunks]
    return [item.snapshot.step for item in added if item.snapshot is not None]
