"""Hypothesis strategies: messages that a peer may really send."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

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
)

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
