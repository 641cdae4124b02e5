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
