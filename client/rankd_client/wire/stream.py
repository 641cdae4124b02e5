"""The alert stream and its query endpoint: events, queries and replies ↔ frames."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankd_client.wire import fields as f
from rankd_client.wire.errors import WireError
from rankd_client.wire.limits import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_REPLY_FRAMES,
    MAX_RUN_NAME_BYTES,
    MAX_STEP,
)
from rankd_client.wire.messages import Payload
from rankd_client.wire.names import NAMESPACE, full_run_name, is_namespace, join_run, split_run

KINDS = ("alert", "measurement", "heartbeat")
_SEQUENCE = struct.Struct(">8sQ")
MAX_TOPIC_BYTES = MAX_RUN_NAME_BYTES + 96
QUERIES = ("state", "resume")


@dataclass(frozen=True, slots=True)
class Event:
    """One message of the stream. `run` is the full name, for a heartbeat "" or `@NAMESPACE`; `seq` counts from 1 per
    topic and stream id."""

    kind: str
    run: str
    stream_id: str
    seq: int
    body: Mapping[str, Any]

    @property
    def topic(self) -> bytes:
        return topic_of(self.kind, self.run)


@dataclass(frozen=True, slots=True)
class Query:
    """Subscriber → daemon. verb "state": what is firing now, and the newest numbers; "resume": the events of `kind` and
    `run` from number `from_seq` on, of the stream `stream_id` (None: the current one). `run` is a full name."""

    verb: str
    query_id: int
    kind: str = "alert"
    run: str | None = None
    from_seq: int = 0
    stream_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Daemon → subscriber. `body` answers a state query, `events` a resume; `error` is a code, or "". `stream_id` is
    the current stream's, whatever the events are of."""

    query_id: int
    stream_id: str
    body: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    error: str = ""


def topic_of(kind: str, run: str = "") -> bytes:
    """KIND NUL RUN NUL for a full name RUN, KIND@NAMESPACE NUL RUN NUL for @NAMESPACE/RUN: the NULs keep one run's name
    or namespace from being another's prefix. A heartbeat has no run, but "" or `@NAMESPACE`."""
    if kind not in KINDS:
        raise WireError("bad_topic", f"kind {kind!a}; expected one of {', '.join(KINDS)}")
    if kind == "heartbeat":
        if run and not (run[0] == "@" and is_namespace(run[1:])):
            raise WireError("bad_name", f"run={f.show(run)}; a heartbeat has none, or @NAMESPACE")
        return heartbeat_topic(run[1:])
    namespace, own = split_run(run)
    return prefix_of(kind, namespace) + own.encode() + b"\0"


def prefix_of(kind: str, namespace: str = "") -> bytes:
    """What the topics of all runs of a namespace begin with."""
    return f"{kind}@{namespace}\0".encode() if namespace else f"{kind}\0".encode()


def heartbeat_topic(namespace: str = "") -> bytes:
    """The topic of the heartbeats that name a namespace's numbers."""
    return prefix_of("heartbeat", namespace)


def parse_topic(topic: bytes) -> tuple[str, str]:
    """(kind, full name of the run); ("heartbeat", "" or "@NAMESPACE"). WireError bad_topic or bad_name."""
    parts = bytes(topic[:MAX_TOPIC_BYTES]).split(b"\0")
    kind, at, namespace = parts[0].decode("ascii", "replace").partition("@")
    if len(topic) > MAX_TOPIC_BYTES or kind not in KINDS or parts[-1] != b"":
        raise WireError("bad_topic", f"{bytes(topic[:60])!a}")
    if kind == "heartbeat" and len(parts) == 2 and (not at or is_namespace(namespace)):
        return kind, at + namespace
    if kind == "heartbeat" or len(parts) != 3 or (at and not NAMESPACE.fullmatch(namespace)):
        raise WireError("bad_topic", f"{bytes(topic[:60])!a}")
    try:
        run = join_run(namespace, parts[1].decode())
    except UnicodeDecodeError:
        raise WireError("bad_topic", f"{bytes(topic[:60])!a}; expected UTF-8") from None
    if topic_of(kind, run) != topic:  # @NAMESPACE/RUN where RUN belongs: one run has one topic
        raise WireError("bad_topic", f"{bytes(topic[:60])!a}; expected {topic_of(kind, run)[:60]!a}")
    return kind, run


def encode_event(event: Event) -> list[bytes]:
    """[topic, stream id and number, msgpack body]"""
    sequence = _SEQUENCE.pack(bytes.fromhex(f.stream_id("stream_id", event.stream_id)), event.seq)
    return [event.topic, sequence, f.pack_map(f.body("body", dict(event.body)), MAX_BODY_BYTES)]


def decode_event(frames: Sequence[Payload]) -> Event:
    """The event in three frames; WireError for anything else."""
    if len(frames) != 3:
        raise WireError("frame_count", f"{len(frames)} frames; an event has 3")
    kind, run = parse_topic(bytes(memoryview(frames[0])[: MAX_TOPIC_BYTES + 1]))
    if len(frames[1]) != _SEQUENCE.size:
        raise WireError("bad_sequence", f"{len(frames[1])} bytes; expected {_SEQUENCE.size}")
    stream_id, seq = _SEQUENCE.unpack(frames[1])
    if seq > MAX_STEP:
        raise WireError("bad_sequence", f"number {seq}; at most {MAX_STEP}")
    return Event(kind, run, stream_id.hex(), seq, f.unpack_body(memoryview(frames[2])))


def encode_query(query: Query) -> list[bytes]:
    header = {"t": query.verb, "id": query.query_id, "kind": query.kind, "run": query.run, "from_seq": query.from_seq}
    return [f.pack_map({**header, "stream_id": query.stream_id})]


def decode_query(frames: Sequence[Payload]) -> Query:
    if len(frames) != 1:
        raise WireError("frame_count", f"{len(frames)} frames; a query has 1")
    header = f.unpack_map(memoryview(frames[0]), MAX_HEADER_BYTES, "header_too_large")
    verb = f.take(header, "t", f.one_of("unknown_query", QUERIES))
    if verb == "resume" and header.get("run") is None:
        raise WireError("missing_field", "'run'; a resume names the topic whose numbers it counts in")
    return Query(
        verb=verb,
        query_id=f.take(header, "id", f.integer(0, MAX_STEP)),
        kind=f.take(header, "kind", f.one_of("bad_field", KINDS[:2]), "alert"),
        run=f.take(header, "run", f.optional(full_run_name), None),
        from_seq=f.take(header, "from_seq", f.integer(0, MAX_STEP), 0),
        stream_id=f.take(header, "stream_id", f.optional(f.stream_id), None),
    )


def query_id_of(frames: Sequence[Payload]) -> int:
    """The id of a query that may be refused otherwise, for the reply that refuses it; 0 where it cannot be read."""
    try:
        header = f.unpack_map(memoryview(frames[0]), MAX_HEADER_BYTES, "header_too_large")
        return int(f.take(header, "id", f.integer(0, MAX_STEP)))
    except (WireError, IndexError):
        return 0


def encode_reply(reply: Reply) -> list[bytes]:
    """[header, then three frames an event]"""
    header = {"t": "reply", "id": reply.query_id, "stream_id": reply.stream_id, "error": reply.error}
    frames = [f.pack_map({**header, "body": f.body("body", dict(reply.body))}, MAX_BODY_BYTES)]
    for event in reply.events:
        frames += encode_event(event)
    return frames


def decode_reply(frames: Sequence[Payload]) -> Reply:
    if not frames or len(frames) % 3 != 1 or len(frames) > 3 * MAX_REPLY_FRAMES:
        raise WireError("frame_count", f"{len(frames)} frames; a reply has 1, and 3 for each event")
    header = f.unpack_map(memoryview(frames[0]), MAX_BODY_BYTES, "body_too_large")
    f.take(header, "t", f.one_of("unknown_type", ("reply",)))
    return Reply(
        query_id=f.take(header, "id", f.integer(0, MAX_STEP)),
        stream_id=f.take(header, "stream_id", f.stream_id),
        body=f.take(header, "body", f.body, {}),
        error=f.take(header, "error", f.text(64), ""),
        events=tuple(decode_event(frames[i : i + 3]) for i in range(1, len(frames), 3)),
    )
