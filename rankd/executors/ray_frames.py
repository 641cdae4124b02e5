"""What goes between the daemon and its Ray driver, a process of its own on the same host: a message in msgpack, then
arrays as raw bytes. Nothing that is read here is unpickled.

    length of the message, 4 bytes | message: a map, whose "sizes" tells the arrays' bytes | the arrays, one by one
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from rankd.executors.solver import MeasureError
from rankd.executors.work import Work
from rankd.records import Reading, Snapshot
from rankd.weights import Part

Array = npt.NDArray[np.uint8]

MAX_MESSAGE_BYTES = 64 << 20
"""A fused weight has some parts of some kB each; nothing comes near it."""

_LENGTH = struct.Struct("!I")
_SNAPSHOT_KEYS = tuple(item.name for item in fields(Snapshot) if item.name != "data")
_READING_KEYS = tuple(item.name for item in fields(Reading))


def send(end: socket.socket, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Blocks until all is on its way. OSError where the other end is gone."""
    head = msgpack.packb({**message, "sizes": [array.nbytes for array in arrays]})
    end.sendall(_LENGTH.pack(len(head)) + head)
    for array in arrays:
        end.sendall(array.data)


def receive(end: socket.socket) -> tuple[dict[str, Any], list[Array]]:
    """The next message and its arrays. EOFError at the end, OSError (TimeoutError) where none comes in time, ValueError
    for what is no message."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size).data)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes; expected at most {MAX_MESSAGE_BYTES}")
    message = msgpack.unpackb(_exactly(end, length).data)
    return message, [_exactly(end, size) for size in message.pop("sizes")]


def _exactly(end: socket.socket, num_bytes: int) -> Array:
    array = np.empty(num_bytes, np.uint8)
    view, got = array.data, 0
    while got < num_bytes:
        if not (count := end.recv_into(view[got:])):
            raise EOFError("the other end is gone")
        got += count
    return array


def describe(work: Work) -> tuple[dict[str, Any], list[Array]]:
    """`work` as plain values, and its bytes: the snapshot's and, where there is one, the partner's."""
    snapshots = [work.snapshot] if work.partner is None else [work.snapshot, work.partner]
    told = [{key: getattr(snapshot, key) for key in _SNAPSHOT_KEYS} for snapshot in snapshots]
    return {"tier": work.tier, "snapshots": told}, [snapshot.data for snapshot in snapshots]


def work_of(description: Mapping[str, Any], arrays: Sequence[Array]) -> Work:
    """What `describe` told."""
    snapshot, *partner = [
        Snapshot(data=data, **{**told, "shape": tuple(told["shape"])})
        for told, data in zip(description["snapshots"], arrays, strict=True)
    ]
    return Work(snapshot, description["tier"], partner[0] if partner else None)


def pack_outcome(outcome: Sequence[Part] | Exception) -> bytes:
    """What a Solver made of a work."""
    if isinstance(outcome, Exception):
        known = isinstance(outcome, MeasureError)
        told: dict[str, Any] = {"error": str(outcome) if known else f"{type(outcome).__name__}: {outcome}"}
        packed: bytes = msgpack.packb({**told, "known": known})
        return packed
    parts = [(part.layer, part.shape, {key: getattr(part.reading, key) for key in _READING_KEYS}) for part in outcome]
    packed = msgpack.packb({"parts": parts})
    return packed


def outcome_of(packed: bytes) -> list[Part] | Exception:
    """What `pack_outcome` packed. What was no MeasureError is a RuntimeError with the words of it."""
    told = msgpack.unpackb(packed)
    if "error" in told:
        return MeasureError(told["error"]) if told["known"] else RuntimeError(f"in a Ray worker: {told['error']}")
    return [Part(layer, tuple(shape), _reading_of(reading)) for layer, shape, reading in told["parts"]]


def _reading_of(told: dict[str, Any]) -> Reading:
    bars = {name: (low, high) for name, (low, high) in told["bars"].items()}
    return Reading(**{**told, "bars": bars})
