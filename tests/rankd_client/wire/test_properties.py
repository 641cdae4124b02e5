"""Any bytes at all give a message or WireError, never another exception; and what decodes, encodes to the same again.

Three sources of bytes: random ones, the golden ones damaged, and well-formed headers with hostile values in them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankd_client.wire import (
    DTYPES,
    LOCAL_VERSION,
    MAX_BLOCKS,
    MAX_STEP,
    PROTOCOL_VERSION,
    SCALED_VERSION,
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Event,
    Handover,
    Heartbeat,
    Hello,
    Lend,
    Lent,
    Plan,
    Query,
    Refusal,
    Reply,
    Reported,
    Shard,
    Taken,
    Welcome,
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

# Messages that a peer may really send.
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
full_names = names.filter(lambda name: not name.startswith("@")) | st.just("@daemon")
full_names |= st.builds("@{}/{}".format, st.sampled_from(["a", "team-a", "0.x_y"]), names.filter(lambda n: n[0] != "@"))
uints = st.one_of(st.integers(0, 300), st.integers(0, MAX_STEP), st.just(MAX_STEP))
roles = st.sampled_from(["weight", "update", "gradient", "feature"])
stream_ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
codes = texts.filter(lambda text: len(text.encode()) <= 64)
scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | texts
scalars |= st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=10
)
bodies = st.dictionaries(texts, json_values, max_size=6)
plans = st.builds(Plan, uints, uints, uints)
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=8).map(tuple).filter(lambda shape: math.prod(shape) <= 5000)


@st.composite
def range_shards(draw: st.DrawFn, num_elements: int) -> Shard:
    limit = min(8, (num_elements + 1) // 2)
    cuts = draw(st.lists(st.integers(0, num_elements), min_size=2, max_size=2 * limit, unique=True).map(sorted))
    pairs = [(cuts[i], cuts[i + 1]) for i in range(0, len(cuts) - 1, 2)]
    return Shard(ranges=tuple(draw(st.permutations(pairs))), replica=draw(st.integers(0, 9)))


@st.composite
def rectangle_shards(draw: st.DrawFn, rows: int, cols: int) -> Shard:
    """Some cells of a grid laid over the matrix."""
    row_cuts = [0, *draw(st.lists(st.integers(1, rows), max_size=3, unique=True).map(sorted)), rows]
    col_cuts = [0, *draw(st.lists(st.integers(1, cols), max_size=3, unique=True).map(sorted)), cols]
    cells = [
        (r0, r1, c0, c1)
        for r0, r1 in itertools.pairwise(row_cuts)
        for c0, c1 in itertools.pairwise(col_cuts)
        if r0 < r1 and c0 < c1
    ]
    chosen = draw(st.lists(st.sampled_from(cells), min_size=1, unique=True))
    return Shard(rectangles=tuple(chosen), replica=draw(st.integers(0, 9)))


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    shape = draw(shapes)
    rows, size = shape[0], math.prod(shape)
    dtype = draw(st.sampled_from([dtype for dtype in DTYPES.values() if not dtype.reserved]))
    shard = draw(st.just(Shard()) | range_shards(size) | rectangle_shards(rows, size // rows))
    if dtype.scaled and not shard.has_whole_rows(shape):
        shard = Shard(rectangles=((0, rows, 0, size // rows),), replica=shard.replica)
    total = dtype.num_bytes(shard.num_elements(shape), shape)
    offset = draw(st.integers(0, total // dtype.item_bytes - 1)) * dtype.item_bytes
    payload = draw(st.binary(min_size=1, max_size=8)) * (total - offset)
    return Chunk(
        layer=draw(names),
        step=draw(uints),
        dtype=dtype.name,
        shape=shape,
        total_bytes=total,
        offset=offset,
        payload=payload[: total - offset],
        role=draw(roles),
        source_dtype=draw(texts.filter(lambda value: len(value.encode()) <= 32)),
        shard=shard,
    )


hellos = st.integers(1, 1 << 20).flatmap(
    lambda world: st.builds(
        Hello,
        names,
        st.binary(min_size=16, max_size=16),
        agent=texts,
        version=st.sampled_from([PROTOCOL_VERSION, SCALED_VERSION, LOCAL_VERSION]),
        process_rank=st.integers(0, world - 1),
        world_size=st.just(world),
    )
)
chunk_bytes = st.integers(4 << 20, 16 << 20)
file_names = st.just("arena.sock") | codes.filter(lambda name: name not in (".", "..") and not set(name) & {"/", "\0"})
welcomes = st.builds(Welcome, stream_ids, uints, chunk_bytes, st.floats(0.01, 3600.0), plan=plans) | st.builds(
    Welcome,
    stream_ids,
    uints,
    chunk_bytes,
    st.just(1.0),
    st.just(LOCAL_VERSION),
    arena_socket=file_names.filter(bool),
    arena_token=codes,
)
lents = st.builds(
    lambda chunk, block, at: Lent(replace(chunk, payload=b""), block, at, len(chunk.payload)),
    chunks(),
    st.integers(0, MAX_BLOCKS - 1),
    uints,
)
reports = st.builds(Reported, names, uints, bodies, roles, st.booleans())
acks = st.builds(
    Ack, st.sampled_from(["received", "recorded", "superseded"]), names, uints, roles, uints, st.none() | uints
)
refusals = st.builds(Refusal, codes, texts, st.none() | names, st.none() | uints, roles, uints)
others = st.builds(Heartbeat, bodies) | st.just(Bye())
messages = st.one_of(hellos, welcomes, plans, chunks(), lents, reports, acks, refusals, st.builds(AlertNotice, bodies))
messages |= others
sizes = st.lists(st.integers(65, MAX_STEP), min_size=1, max_size=8).map(tuple)
handovers: st.SearchStrategy[Handover] = st.builds(
    Lend, codes, st.binary(min_size=16, max_size=16), st.integers(1, MAX_STEP), st.integers(0, 8), sizes
)
handovers |= st.builds(Taken, st.integers(1, MAX_BLOCKS)) | st.builds(Refusal, codes, texts)
heartbeats = st.builds(Event, st.just("heartbeat"), st.sampled_from(["", "@a"]), stream_ids, uints, bodies)
numbered = st.builds(Event, st.sampled_from(["alert", "measurement"]), full_names, stream_ids, uints, bodies)
events = numbered | heartbeats
kinds = st.sampled_from(["alert", "measurement"])
queries = st.builds(Query, st.just("state"), uints, kinds, st.none() | full_names, uints)
queries |= st.builds(Query, st.just("resume"), uints, kinds, full_names, uints, st.none() | stream_ids)
replies = st.builds(Reply, uints, stream_ids, bodies, st.lists(events, max_size=3).map(tuple), codes)

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
