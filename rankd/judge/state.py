"""The memory of a layer's rules as bytes: version, CRC-32, msgpack.

Whoever changes a rule so that an older state would give other verdicts raises STATE_VERSION; the layer is then judged
anew from all its measurements.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

import msgpack

from rankd.records import Alert

STATE_VERSION = 2
_COLUMN = 1
"""msgpack's extension type for a column of numbers, by its place among the columns."""

FIRST_FIELDS = 15
"""Of an alert, that every recorded state has: up to `time`."""


class StateError(ValueError):
    """Bytes that are no state of this version."""


def pack_state(state: dict[str, Any], detectors: dict[str, dict[str, Any]]) -> bytes:
    """`state` and the states of `detectors` by rule. A column that several of them remember, as the steps, is stored
    once."""
    columns: list[bytes] = []
    shared = {
        rule: {key: _place(value, columns) if isinstance(value, bytes) else value for key, value in each.items()}
        for rule, each in detectors.items()
    }
    body: bytes = msgpack.packb([state, shared, columns])
    return bytes([STATE_VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body


def unpack_state(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `pack_state` was given. Raises StateError for another version or damaged bytes."""
    if data[:1] != bytes([STATE_VERSION]):
        raise StateError(f"the state of a layer has version {data[:1].hex() or 'none'}; expected {STATE_VERSION:02x}")
    body = data[5:]
    if not body or zlib.crc32(body) != int.from_bytes(data[1:5], "little"):
        raise StateError(f"the state of a layer, {len(data)} bytes, is damaged; expected its checksum to hold")
    state, detectors, columns = msgpack.unpackb(body)
    for each in detectors.values():
        for key, value in each.items():
            if isinstance(value, msgpack.ExtType):
                each[key] = columns[value.data[0]]
    return state, detectors


def pack_alert(alert: Alert) -> tuple[Any, ...]:
    """Its fields; those behind the first ones as far as they say something: older states have none of them."""
    values, last = astuple(alert), FIRST_FIELDS
    for at, field in enumerate(fields(alert)):
        if at >= FIRST_FIELDS and values[at] != field.default:
            last = at + 1
    return values[:last]


def unpack_alert(values: Sequence[Any]) -> Alert:
    """The alert whose `pack_alert` msgpack has made a list of."""
    fired: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return Alert(*fired)


def _place(column: bytes, columns: list[bytes]) -> msgpack.ExtType:
    if column not in columns:
        columns.append(column)
    return msgpack.ExtType(_COLUMN, bytes([columns.index(column)]))
