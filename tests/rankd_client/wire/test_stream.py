"""Events, queries and replies: what single bytes cannot show."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from rankd_client.wire import (
    Event,
    Query,
    Reply,
    WireError,
    decode_event,
    decode_query,
    decode_reply,
    encode_event,
    encode_query,
    encode_reply,
    join_run,
    parse_topic,
    prefix_of,
    query_id_of,
    split_run,
    topic_of,
)

STREAM_ID = "00112233445566ff"


def test_no_runs_topic_is_the_start_of_anothers() -> None:
    topics = [topic_of(kind, run) for kind in ("alert", "measurement") for run in ("a", "ab", "a b", "alert", "é")]
    topics.append(topic_of("heartbeat"))
    assert not [(a, b) for a in topics for b in topics if a is not b and b.startswith(a)]


@pytest.mark.parametrize("run", ["", "a\0b", "r" * 257])
def test_a_topic_is_only_made_of_a_good_name(run: str) -> None:
    with pytest.raises(WireError, match="bad_name"):
        topic_of("alert", run)


def test_a_topic_is_only_made_of_a_known_kind() -> None:
    with pytest.raises(WireError, match="bad_topic"):
        topic_of("alarm", "r")


@pytest.mark.parametrize("stream_id", ["", "00", STREAM_ID + "00", STREAM_ID.upper(), "not hexadecimal!"])
def test_an_event_of_a_bad_stream_id_is_not_sent(stream_id: str) -> None:
    with pytest.raises(WireError, match="bad_field"):
        encode_event(Event("alert", "r", stream_id, 1, {}))


@pytest.mark.parametrize("body", [{"value": float("nan")}, {"value": b""}, {"value": {1: 2}}])
def test_a_body_that_could_not_be_json_is_not_sent(body: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="bad_body"):
        encode_event(Event("measurement", "r", STREAM_ID, 1, body))
    with pytest.raises(WireError, match="bad_body"):
        encode_reply(Reply(1, STREAM_ID, body))


def test_a_body_that_would_be_refused_is_not_sent() -> None:
    with pytest.raises(ValueError, match="4194304"):
        encode_event(Event("alert", "r", STREAM_ID, 1, {"message": "x" * (4 << 20)}))


def test_a_reply_carries_a_thousand_events_and_no_more() -> None:
    events = tuple(Event("alert", "r", STREAM_ID, number, {}) for number in range(1, 1001))
    reply = Reply(1, STREAM_ID, events=events)
    frames = encode_reply(reply)
    assert decode_reply(frames) == reply
    with pytest.raises(WireError, match="frame_count"):
        decode_reply([*frames, *frames[1:4]])


def test_one_bad_event_refuses_the_reply() -> None:
    frames = encode_reply(Reply(1, STREAM_ID, events=(Event("alert", "r", STREAM_ID, 1, {}),)))
    with pytest.raises(WireError, match="bad_topic"):
        decode_reply([frames[0], b"alarm\0r\0", *frames[2:]])


def test_unknown_keys_are_ignored_and_those_of_a_body_kept() -> None:
    header = {"t": "state", "id": 1, "later": True}
    assert decode_query([msgpack.packb(header)]) == Query("state", 1)
    event = Event("measurement", "r", STREAM_ID, 1, {"loss": 1.5, "later": [1, {"x": None}]})
    assert decode_event(encode_event(event)) == event


def test_a_query_without_a_run_asks_for_all() -> None:
    assert decode_query(encode_query(Query("state", 7))).run is None


@pytest.mark.parametrize(
    ("run", "topic"),
    [
        ("lm-42", b"alert\0lm-42\0"),
        ("a/b", b"alert\0a/b\0"),
        ("@daemon", b"alert\0@daemon\0"),
        ("@team-a/lm-42", b"alert@team-a\0lm-42\0"),
        ("@a/b/c@d", b"alert@a\0b/c@d\0"),
        ("@" + "n" * 64 + "/" + "r" * 256, b"alert@" + b"n" * 64 + b"\0" + b"r" * 256 + b"\0"),
    ],
)
def test_a_run_of_a_namespace_has_a_topic_of_its_namespace(run: str, topic: bytes) -> None:
    assert topic_of("alert", run) == topic
    assert parse_topic(topic) == ("alert", run)
    assert topic.startswith(prefix_of("alert", split_run(run)[0]))


def test_no_namespaces_prefix_covers_another() -> None:
    runs = ("r", "@daemon", "@r/r", "@rr/r", "@r-r/r", "@r.r/r")
    for namespace in ("", "r", "rr", "r-r", "r.r"):
        prefix = prefix_of("alert", namespace)
        covered = [run for run in runs if topic_of("alert", run).startswith(prefix)]
        assert covered == [run for run in runs if split_run(run)[0] == namespace]


@pytest.mark.parametrize(("namespace", "run", "full"), [("", "r", "r"), ("a", "r", "@a/r"), ("", "@daemon", "@daemon")])
def test_full_names_are_made_and_taken_apart(namespace: str, run: str, full: str) -> None:
    assert join_run(namespace, run) == full
    assert split_run(full) == (namespace, run)


@pytest.mark.parametrize(
    ("namespace", "run"), [("A", "r"), ("daemon", "r"), ("a", "@r"), ("a", ""), ("a", "@daemon"), ("a/b", "@r")]
)
def test_names_that_no_run_can_have_are_not_made(namespace: str, run: str) -> None:
    with pytest.raises(WireError, match="bad_name"):
        join_run(namespace, run)


@pytest.mark.parametrize(
    ("frames", "query_id"),
    [
        ([msgpack.packb({"t": "later", "id": 7})], 7),
        ([msgpack.packb({"t": "resume", "id": 7})], 7),
        ([msgpack.packb({"t": "state", "id": 7}), b""], 7),
        ([msgpack.packb({"t": "state", "id": -1})], 0),
        ([msgpack.packb({"t": "state", "id": True})], 0),
        ([msgpack.packb({"t": "state"})], 0),
        ([b"\xc1"], 0),
        ([], 0),
    ],
)
def test_the_id_of_a_refused_query_is_found_where_it_can_be_read(frames: list[bytes], query_id: int) -> None:
    with pytest.raises(WireError):
        decode_query(frames)
    assert query_id_of(frames) == query_id
