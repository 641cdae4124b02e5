"""Messages of a push connection ↔ frames. Order of work: cap, parse, check fields, check sizes, only then build."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rankd_client.wire import fields as f
from rankd_client.wire.disjoint import disjoint
from rankd_client.wire.dtypes import DTYPES, dtype_by_code
from rankd_client.wire.errors import WireError
from rankd_client.wire.limits import (
    LOCAL_VERSION,
    MAX_BLOCKS,
    MAX_CHUNK_BYTES,
    MAX_HEADER_BYTES,
    MAX_LAYER_NAME_BYTES,
    MAX_REPORT_BYTES,
    MAX_RUN_NAME_BYTES,
    MAX_STEP,
    MAX_TEXT_BYTES,
    MIN_CHUNK_BYTES,
    PROTOCOL_VERSION,
    SCALED_VERSION,
)
from rankd_client.wire.messages import (
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Hello,
    Lent,
    Message,
    Payload,
    Plan,
    Refusal,
    Reported,
    Shard,
    Welcome,
)

_UINT = f.integer(0, MAX_STEP)
_STEP = f.integer(0, MAX_STEP)
_LAYER = f.name(MAX_LAYER_NAME_BYTES)
_RUN = f.name(MAX_RUN_NAME_BYTES)
_ROLE = f.one_of("unknown_role", f.ROLES)
_VERSIONS = (PROTOCOL_VERSION, SCALED_VERSION, LOCAL_VERSION)
_ACK_STATES = ("received", "recorded", "superseded")

Header = dict[str, Any]


def encode(message: Message) -> list[Payload]:
    """Frames of `message`: the msgpack header, and for a Chunk its payload as it is (no copy)."""
    header: Header
    match message:
        case Chunk():
            return [f.pack_map({"t": "chunk", **_chunk_header(message)}), message.payload]
        case Reported():
            header = {"t": "measurement", "layer": message.layer, "step": message.step, "role": message.role}
            header |= {"again": True} if message.again else {}
            return [f.pack_map(header), f.pack_map(f.body("body", dict(message.body)), MAX_REPORT_BYTES)]
        case Lent():
            header = {"t": "lent", **_chunk_header(message.chunk)}
            header |= {"block": message.block, "at": message.at, "num_bytes": message.num_bytes}
        case Hello():
            header = {"t": "hello", "version": message.version, "run": message.run, "session": message.session}
            header |= {"agent": message.agent, "process_rank": message.process_rank, "world_size": message.world_size}
        case Welcome():
            header = {"t": "welcome", "version": message.version, "stream_id": message.stream_id}
            header |= {"credit_bytes": message.credit_bytes, "chunk_bytes": message.chunk_bytes}
            header |= {"heartbeat_seconds": message.heartbeat_seconds, "plan": _plan_header(message.plan)}
            if message.arena_socket:
                header |= {"arena_socket": message.arena_socket, "arena_token": message.arena_token}
        case Plan():
            header = {"t": "plan", **_plan_header(message)}
        case Ack():
            header = {"t": "ack", "state": message.state, "layer": message.layer, "step": message.step}
            header |= {"role": message.role, "credit_bytes": message.credit_bytes, "by_step": message.by_step}
        case Refusal():
            header = {"t": "refusal", "code": message.code, "detail": f.cut(message.detail, MAX_TEXT_BYTES)}
            header |= {"layer": message.layer, "step": message.step, "role": message.role}
            header |= {"credit_bytes": message.credit_bytes}
        case AlertNotice():
            header = {"t": "alert", "alert": f.body("alert", dict(message.alert))}
        case Heartbeat():
            header = {"t": "heartbeat"}
            if message.stats:
                header["stats"] = f.body("stats", dict(message.stats))
        case Bye():
            header = {"t": "bye"}
    return [f.pack_map(header)]


def decode(frames: Sequence[Payload], version: int = PROTOCOL_VERSION) -> Message:
    """The message in `frames` (without any routing frame), which came over a connection of this version.

    Raises WireError, and nothing else, for every other input. The payload of a Chunk is the caller's buffer, not a
    copy; nothing proportional to what a header claims is allocated here.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError("frame_count", f"{len(frames)} frames; expected a header and at most one payload")
    header = f.unpack_map(memoryview(frames[0]), MAX_HEADER_BYTES, "header_too_large")
    kind = header.get("t")
    if not isinstance(kind, str) or kind not in _PARSERS or (kind in _LOCAL and version < LOCAL_VERSION):
        known = [name for name in _PARSERS if name not in _LOCAL or version >= LOCAL_VERSION]
        raise WireError("unknown_type", f"t={f.show(kind)}; expected one of {', '.join(known)}")
    if (len(frames) == 2) != (kind in _WITH_PAYLOAD):
        raise WireError("frame_count", f"{len(frames)} frames for a {kind}")
    if kind == "chunk":
        return _parse_chunk(header, frames[1], version)
    if kind == "measurement":
        return _parse_reported(header, frames[1])
    message: Message = _PARSERS[kind](header)
    return message


def _chunk_header(chunk: Chunk) -> Header:
    header: Header = {"layer": chunk.layer, "step": chunk.step, "role": chunk.role}
    header |= {"dtype": DTYPES[chunk.dtype].code, "source_dtype": chunk.source_dtype, "shape": list(chunk.shape)}
    header |= {"total_bytes": chunk.total_bytes, "offset": chunk.offset, "replica": chunk.shard.replica}
    if chunk.shard.rectangles:
        header["rectangles"] = chunk.shard.rectangles
    if chunk.shard.ranges:
        header["ranges"] = chunk.shard.ranges
    return header


def _parse_chunk(header: Header, payload: Payload, version: int) -> Chunk:
    if len(payload) > MAX_CHUNK_BYTES:
        raise WireError("payload_too_large", f"{len(payload)} bytes; at most {MAX_CHUNK_BYTES}")
    return _parse_part(header, payload, len(payload), version)


def _parse_lent(header: Header) -> Lent:
    num_bytes = f.take(header, "num_bytes", f.integer(0, MAX_CHUNK_BYTES))
    return Lent(
        chunk=_parse_part(header, b"", num_bytes, LOCAL_VERSION),
        block=f.take(header, "block", f.integer(0, MAX_BLOCKS - 1)),
        at=f.take(header, "at", _UINT),
        num_bytes=num_bytes,
    )


def _parse_reported(header: Header, body: Payload) -> Reported:
    value = f.unpack_map(memoryview(body), MAX_REPORT_BYTES, "payload_too_large")
    f.check_json(value)
    return Reported(
        layer=f.take(header, "layer", _LAYER),
        step=f.take(header, "step", _STEP),
        role=f.take(header, "role", _ROLE, "weight"),
        again=f.take(header, "again", f.boolean, False),
        body=value,
        num_bytes=len(body),
    )


def _parse_part(header: Header, payload: Payload, num_bytes: int, version: int) -> Chunk:
    """A chunk of `num_bytes`, which `payload` has unless they are lent."""
    dtype = dtype_by_code(f.take(header, "dtype", f.integer(0, 255)), version)
    shape = f.take(header, "shape", f.shape)
    shard = _parse_shard(header, shape)
    if dtype.scaled and not shard.has_whole_rows(shape):
        raise WireError("bad_shard", f"{dtype.name} has a scale per row; expected whole rows of the matrix")
    total_bytes = f.take(header, "total_bytes", _UINT)
    expected_bytes = dtype.num_bytes(shard.num_elements(shape), shape)
    if total_bytes != expected_bytes:
        raise WireError("size_mismatch", f"total_bytes={total_bytes}; shape and dtype give {expected_bytes}")
    chunk = Chunk(
        layer=f.take(header, "layer", _LAYER),
        step=f.take(header, "step", _STEP),
        role=f.take(header, "role", _ROLE, "weight"),
        dtype=dtype.name,
        source_dtype=f.take(header, "source_dtype", f.text(32), ""),
        shape=shape,
        total_bytes=total_bytes,
        offset=f.take(header, "offset", _UINT),
        shard=shard,
        payload=payload,
    )
    end = chunk.offset + num_bytes
    if chunk.offset % dtype.item_bytes or num_bytes % dtype.item_bytes:
        raise WireError("bad_chunk", f"bytes {chunk.offset} to {end} cut an element of {dtype.item_bytes} bytes")
    if end > total_bytes or num_bytes == 0 or (num_bytes < MIN_CHUNK_BYTES and end < total_bytes):
        raise WireError("bad_chunk", f"bytes {chunk.offset} to {end} of {total_bytes}")
    return chunk


def _parse_shard(header: Header, shape: tuple[int, ...]) -> Shard:
    rectangles = f.take(header, "rectangles", f.integer_rows(4), ())
    ranges = f.take(header, "ranges", f.integer_rows(2), ())
    rows, cols = shape[0], math.prod(shape[1:])
    if rectangles and ranges:
        raise WireError("bad_shard", "rectangles and ranges in one shard; expected one of them")
    if any(not (r0 < r1 <= rows and c0 < c1 <= cols) for r0, r1, c0, c1 in rectangles):
        raise WireError("bad_shard", f"a rectangle is empty or outside {rows} x {cols}")
    if any(not start < end <= rows * cols for start, end in ranges):
        raise WireError("bad_shard", f"a range is empty or outside {rows * cols} elements")
    shard = Shard(rectangles, ranges, f.take(header, "replica", f.integer(0, 1 << 20), 0))
    if shard.num_elements(shape) > rows * cols:
        raise WireError("bad_shard", "the pieces are larger than the matrix together")
    if not disjoint(rectangles or ((0, 1, start, end) for start, end in ranges)):
        raise WireError("bad_shard", "two pieces overlap")
    return shard


def _parse_version(header: Header) -> int:
    version: int = f.take(header, "version", f.integer(0, 1 << 16))
    if version not in _VERSIONS:
        raise WireError("unknown_version", f"version {version}; this side speaks {' and '.join(map(str, _VERSIONS))}")
    return version


def _parse_hello(header: Header) -> Hello:
    version = _parse_version(header)
    world_size = f.take(header, "world_size", f.integer(1, 1 << 20), 1)
    return Hello(
        run=f.take(header, "run", _RUN),
        session=f.take(header, "session", f.binary(16)),
        version=version,
        agent=f.take(header, "agent", f.text(128), ""),
        process_rank=f.take(header, "process_rank", f.integer(0, world_size - 1), 0),
        world_size=world_size,
    )


def _parse_welcome(header: Header) -> Welcome:
    version = _parse_version(header)
    return Welcome(
        stream_id=f.take(header, "stream_id", f.stream_id),
        credit_bytes=f.take(header, "credit_bytes", _UINT),
        chunk_bytes=f.take(header, "chunk_bytes", f.integer(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES)),
        heartbeat_seconds=f.take(header, "heartbeat_seconds", f.number(0.01, 3600.0)),
        arena_socket=f.take(header, "arena_socket", f.file_name, ""),
        arena_token=f.take(header, "arena_token", f.text(64), ""),
        version=version,
        plan=_parse_plan(f.take(header, "plan", f.mapping, {})),
    )


def _plan_header(plan: Plan) -> Header:
    return {"plan_id": plan.plan_id, "first_step": plan.first_step, "every_steps": plan.every_steps}


def _parse_plan(header: Header) -> Plan:
    return Plan(
        plan_id=f.take(header, "plan_id", _UINT, 0),
        first_step=f.take(header, "first_step", _STEP, 0),
        every_steps=f.take(header, "every_steps", _UINT, 0),
    )


def _parse_ack(header: Header) -> Ack:
    return Ack(
        state=f.take(header, "state", f.one_of("bad_field", _ACK_STATES)),
        layer=f.take(header, "layer", _LAYER),
        step=f.take(header, "step", _STEP),
        role=f.take(header, "role", _ROLE, "weight"),
        credit_bytes=f.take(header, "credit_bytes", _UINT, 0),
        by_step=f.take(header, "by_step", f.optional(_STEP), None),
    )


def _parse_refusal(header: Header) -> Refusal:
    return Refusal(
        code=f.take(header, "code", f.text(64)),
        detail=f.take(header, "detail", f.text(MAX_TEXT_BYTES), ""),
        layer=f.take(header, "layer", f.optional(_LAYER), None),
        step=f.take(header, "step", f.optional(_STEP), None),
        role=f.take(header, "role", _ROLE, "weight"),
        credit_bytes=f.take(header, "credit_bytes", _UINT, 0),
    )


_PARSERS: dict[str, Any] = {
    "hello": _parse_hello,
    "welcome": _parse_welcome,
    "plan": _parse_plan,
    "chunk": _parse_chunk,
    "lent": _parse_lent,
    "measurement": _parse_reported,
    "ack": _parse_ack,
    "refusal": _parse_refusal,
    "alert": lambda header: AlertNotice(f.take(header, "alert", f.body)),
    "heartbeat": lambda header: Heartbeat(f.take(header, "stats", f.body, {})),
    "bye": lambda header: Bye(),
}
_LOCAL = frozenset({"lent", "measurement"})
"""Types that version 3 has."""

_WITH_PAYLOAD = frozenset({"chunk", "measurement"})
