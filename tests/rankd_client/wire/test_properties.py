"""Any bytes at all give a message or WireError, never another exception; and what decodes, encodes to the same again.

Three sources of bytes: random ones, the golden ones damaged, and well-formed headers with hostile values in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import events, handovers, json_values, messages, queries, replies, texts

from rankd_client.wire import (
    LOCAL_VERSION,
    Event,
    Query,
    Reply,
    WireError,
    decode,
    decode_event,
    decode_handover,
    decode_query,
    decode_reply,
    encode,
    encode_event,
    encode_handover,
    encode_query,
    encode_reply,
)


def decode_newest(frames: list[bytes]) -> Any:
    return decode(frames, LOCAL_VERSION)


def decode_packet(frames: list[bytes]) -> Any:
    return decode_handover(b"".join(frames))


def encode_packet(message: Any) -> list[bytes]:
    return [encode_handover(message)]


CODECS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "message": (decode_newest, encode),
    "event": (decode_event, encode_event),
    "query": (decode_query, encode_query),
    "reply": (decode_reply, encode_reply),
    "handover": (decode_packet, encode_packet),
}
_GOLDEN = Path(__file__).parents[2] / "golden"
_ROWS = [
    row
    for name in ("protocol1.json", "protocol2.json", "refused2.json", "protocol3.json", "refused3.json")
    for row in json.loads((_GOLDEN / name).read_text(encoding="utf-8"))
    if row.get("code") not in ("bad_header", "header_too_large", "payload_too_large")  # what can be taken apart
]
SEEDS: dict[str, list[list[bytes]]] = {kind: [] for kind in CODECS}
for _row in _ROWS:
    SEEDS[_row["decoder"]].append([bytes.fromhex(frame) for frame in _row["frames"]])

enough = settings(max_examples=100, deadline=None)  # a loaded machine is slow, and that is no failure

# Values that nobody should send.
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.sampled_from([-1, 0, 1, 255, 256, 1 << 31, 1 << 47, 1 << 48, 1 << 63, (1 << 64) - 1]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["\ud800", "\0", "a\0b", "weight", "chunk", "é" * 600]),
        st.binary(max_size=20),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
        st.builds(msgpack.Timestamp, st.integers(0, (1 << 32) - 1), st.integers(0, 999_999_999)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(st.lists(st.integers(-1, 9), min_size=2, max_size=4), max_size=4),
        st.dictionaries(st.text(max_size=3) | st.integers(0, 9) | st.binary(max_size=3), inner, max_size=4),
    ),
    max_leaves=8,
)
bombs = st.builds(
    lambda level, depth: level * depth + b"\xc0",
    st.sampled_from([b"\x91", b"\x81\xa1x", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x04\x00", b"\xdd\x00\x00\x03\xff"]),
    st.integers(1, 3000),
)
KEYS = sorted({key for row in _ROWS for key in row.get("fields", ())} | {"t", "id", "rectangles", "ranges", "replica"})


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return packed


@st.composite
def maps_with_hostile_values(draw: st.DrawFn, header: bytes) -> bytes:
    """`header` as a map, some of whose values are replaced, left out, added, or given twice."""
    pairs = [[_pack(key), _pack(value)] for key, value in msgpack.unpackb(header, strict_map_key=False).items()]
    for _ in range(draw(st.integers(1, 3))):
        value = draw(anything.map(_pack) | bombs)
        at = draw(st.integers(0, len(pairs)))
        if at == len(pairs):
            key = draw(st.sampled_from(KEYS).map(_pack) | anything.map(_pack))
            pairs.append([key, value])
        elif draw(st.booleans()):
            pairs[at][1] = value
        else:
            del pairs[at]
    return b"\xde" + len(pairs).to_bytes(2, "big") + b"".join(key + value for key, value in pairs)


@st.composite
def damaged(draw: st.DrawFn, frame: bytes) -> bytes:
    """`frame` cut, with bytes overwritten, put in or taken out."""
    at = draw(st.integers(0, len(frame)))
    new = draw(st.binary(max_size=4) | bombs)
    taken = draw(st.integers(0, 8))
    return frame[:at] + new + frame[at + taken :]


@st.composite
def hostile_frames(draw: st.DrawFn, kind: str) -> list[bytes]:
    frames = list(draw(st.sampled_from(SEEDS[kind])))
    at = draw(st.integers(0, len(frames) - 1))
    is_map = frames[at][:1] > b"\x7f" and (kind != "message" or at == 0) and (kind != "event" or at == 2)
    is_map = is_map and (kind != "reply" or at % 3 == 0)
    frames[at] = draw(maps_with_hostile_values(frames[at]) if is_map and draw(st.booleans()) else damaged(frames[at]))
    if draw(st.integers(0, 9)) == 0:
        frames = draw(st.permutations(frames + draw(st.lists(st.binary(max_size=9), max_size=3))))
    return frames


def message_or_wire_error(kind: str, frames: list[bytes]) -> None:
    decoder, encoder = CODECS[kind]
    try:
        message = decoder(frames)
    except WireError:
        return
    assert decoder(encoder(message)) == message


@enough
@given(messages)
def test_messages_come_back_as_they_were(message: Any) -> None:
    assert decode_newest(encode(message)) == message


@enough
@given(handovers)
def test_what_is_handed_over_comes_back_as_it_was(message: Any) -> None:
    assert decode_handover(encode_handover(message)) == message


@enough
@given(events)
def test_events_come_back_as_they_were(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@enough
@given(queries)
def test_queries_come_back_as_they_were(query: Query) -> None:
    assert decode_query(encode_query(query)) == query


@enough
@given(replies)
def test_replies_come_back_as_they_were(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize("kind", CODECS)
@enough
@given(frames=st.lists(st.binary(max_size=80) | bombs, max_size=5))
def test_random_bytes_give_a_message_or_wire_error(kind: str, frames: list[bytes]) -> None:
    message_or_wire_error(kind, frames)


@pytest.mark.parametrize("kind", CODECS)
@enough
@given(data=st.data())
def test_hostile_bytes_give_a_message_or_wire_error(kind: str, data: st.DataObject) -> None:
    message_or_wire_error(kind, data.draw(hostile_frames(kind)))


@enough
@given(messages, st.dictionaries(texts.map(lambda text: "later " + text), json_values, max_size=3))
def test_unknown_keys_change_nothing(message: Any, more: dict[str, Any]) -> None:
    header, *payload = encode(message)
    wider = msgpack.packb({**more, **msgpack.unpackb(header)})
    assert decode_newest([wider, *payload]) == message
