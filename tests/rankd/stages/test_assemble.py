import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankd.config import Limits
from rankd.quota import NO_QUOTA, Quota
from rankd.records import Snapshot
from rankd.shards import MAX_PIECES_PER_LAYER
from rankd.stages.assemble import Assemble
from rankd_client.wire import DTYPES, MIN_CHUNK_BYTES, Chunk, Shard, WireError

A, B = b"a" * 16, b"b" * 16
FLOATS = ("float64", "float32", "float16", "bfloat16")
Rectangle = tuple[int, int, int, int]


def assembler(**limits: Any) -> Assemble:
    return Assemble(Limits(**limits), Counter())


def chunk(payload: bytes, shape: tuple[int, ...], **fields: Any) -> Chunk:
    shard = fields.setdefault("shard", Shard())
    fields = {"layer": "w", "step": 1, "dtype": "float32", "offset": 0, **fields}
    total_bytes = shard.num_elements(shape) * DTYPES[fields["dtype"]].item_bytes
    return Chunk(shape=shape, total_bytes=total_bytes, payload=payload, **fields)


def cut(payload: bytes, shape: tuple[int, ...], size: int, **fields: Any) -> Iterator[Chunk]:
    for start in range(0, len(payload), size):
        yield chunk(payload[start : start + size], shape, offset=start, **fields)


def ones(num_elements: int) -> bytes:
    return np.ones(num_elements, np.float32).tobytes()


def steps_taken(assemble: Assemble, chunks: list[Chunk], session: bytes = A) -> list[int]:
    added = [assemble.add("r", session, item, 0.0) for item in chunks]
    return [item.snapshot.step for item in added if item.snapshot is not None]


@pytest.mark.parametrize("size", [4, 20, 24, 1000])
def test_whole_matrix_in_chunks_of_any_size(size: int) -> None:
    assemble = assembler()
    matrix = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    *first, last = cut(matrix.tobytes(), matrix.shape, size, source_dtype="float64")
    for item in first:
        assert assemble.add("r", A, item, 1.0).snapshot is None
        assert assemble.num_bytes == matrix.nbytes
    taken = assemble.add("r", A, last, 7.0).snapshot
    assert taken is not None
    assert (taken.run, taken.layer, taken.step, taken.shape, taken.rows, taken.cols) == ("r", "w", 1, (4, 3, 2), 4, 6)
    assert (taken.wire_dtype, taken.source_dtype) == ("float32", "float64")
    assert taken.finite and not taken.zero
    np.testing.assert_array_equal(taken.data.view(np.float32).reshape(matrix.shape), matrix)
    assert assemble.num_bytes == 0


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, int], list[Shard]]:
    """A matrix's shape, and disjoint shards of one kind that cover it."""
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pieces: list[Any]
    flat = draw(st.booleans())
    if flat:
        marks = sorted({0, rows * cols, *draw(st.lists(st.integers(0, rows * cols), max_size=6))})
        pieces = list(pairwise(marks))
    else:
        pieces = _guillotine(draw, (0, rows, 0, cols), 3)
    pieces = draw(st.permutations(pieces))
    owners = draw(st.lists(st.integers(0, 3), min_size=len(pieces), max_size=len(pieces)))
    held = [tuple(p for p, owner in zip(pieces, owners, strict=True) if owner == n) for n in range(4)]
    return (rows, cols), [Shard(ranges=p) if flat else Shard(rectangles=p) for p in held if p]


def _guillotine(draw: st.DrawFn, piece: Rectangle, depth: int) -> list[Rectangle]:
    r0, r1, c0, c1 = piece
    down, across = [(at, None) for at in range(r0 + 1, r1)], [(None, at) for at in range(c0 + 1, c1)]
    if not depth or not (down or across) or draw(st.booleans()):
        return [piece]
    row, col = draw(st.sampled_from(down + across))
    parts = [(r0, row, c0, c1), (row, r1, c0, c1)] if row else [(r0, r1, c0, col), (r0, r1, col, c1)]
    return [small for part in parts for small in _guillotine(draw, part, depth - 1)]


def _payload(matrix: np.ndarray, shard: Shard) -> bytes:
    parts = [matrix[r0:r1, c0:c1].tobytes() for r0, r1, c0, c1 in shard.rectangles]
    return b"".join(parts + [matrix.reshape(-1)[start:end].tobytes() for start, end in shard.ranges])


@given(partitions(), st.data())
@settings(max_examples=150, deadline=None)
def test_shards_in_any_order_equal_the_matrix(case: tuple[tuple[int, int], list[Shard]], data: st.DataObject) -> None:
    shape, shards = case
    dtype = data.draw(st.sampled_from(FLOATS))
    item_bytes = DTYPES[dtype].item_bytes
    matrix = np.arange(1, math.prod(shape) + 1).astype(f"u{item_bytes}").reshape(shape)  # denormals, bit by bit
    assemble = assembler()
    queues = {}
    for number, shard in enumerate(shards):
        size = item_bytes * data.draw(st.integers(1, 5))
        queues[bytes([number])] = list(cut(_payload(matrix, shard), shape, size, shard=shard, dtype=dtype))
    taken: Snapshot | None = None
    while queues:
        assert taken is None
        session = data.draw(st.sampled_from(sorted(queues)))
        taken = assemble.add("r", session, queues[session].pop(0), 0.0).snapshot
        queues = {name: queue for name, queue in queues.items() if queue}
    assert taken is not None
    np.testing.assert_array_equal(taken.data.view(matrix.dtype).reshape(shape), matrix)
    assert assemble.num_bytes == 0
    assert assemble.settle((*taken.key, taken.step)) == {bytes([number]) for number in range(len(shards))}


def test_a_repeat_waits_with_the_first_until_settled() -> None:
    assemble = assembler()
    item = chunk(ones(4), (2, 2))
    taken = assemble.add("r", A, item, 0.0).snapshot
    assert taken is not None
    added = assemble.add("r", B, item, 0.0)
    assert (added.snapshot, added.repeat, added.settled) == (None, True, False)
    assert assemble.settle((*taken.key, taken.step)) == {A, B}
    added = assemble.add("r", B, item, 0.0)
    assert (added.repeat, added.settled) == (True, True)
    assert assemble.counters["num_repeats"] == 2 and assemble.num_bytes == 0
    assert assemble.settle((*taken.key, taken.step)) == set()


def test_other_replicas_are_taken_and_ignored() -> None:
    assemble = assembler()
    added = assemble.add("r", A, chunk(ones(4), (2, 2), shard=Shard(replica=1)), 0.0)
    assert (added.snapshot, added.repeat) == (None, True)
    assert assemble.num_bytes == 0


def test_the_same_step_again_after_going_back_leaves_nobody_waiting() -> None:
    assemble = assembler()
    first = assemble.add("r", A, chunk(ones(4), (2, 2), step=5), 0.0).snapshot
    assert steps_taken(assemble, [chunk(ones(4), (2, 2), step=4)], B) == [4]
    assert steps_taken(assemble, [chunk(ones(4), (2, 2), step=5)], B) == [5]
    assert first is not None
    assert assemble.settle((*first.key, first.step)) == {A, B}


def test_steps_that_go_back_are_new_data() -> None:
    assemble = assembler()
    assert steps_taken(assemble, [chunk(ones(4), (2, 2), step=step) for step in (9, 3, 9)]) == [9, 3, 9]


def test_a_layer_may_change_shape_and_dtype() -> None:
    assemble = assembler()
    halves = np.ones(6, np.float16).tobytes()
    chunks = [chunk(ones(4), (2, 2)), chunk(halves, (3, 2), step=2, dtype="float16"), chunk(ones(2), (1, 2), step=3)]
    assert steps_taken(assemble, chunks) == [1, 2, 3]


def test_a_newer_step_abandons_the_unfinished_one() -> None:
    assemble = assembler()
    assemble.add("r", A, chunk(ones(2), (2, 2), step=1), 0.0)
    assemble.add("r", A, chunk(ones(2), (2, 2), step=2), 0.0)
    assert assemble.num_bytes == 16
    with pytest.raises(WireError, match="chunk_order"):
        assemble.add("r", A, chunk(ones(2), (2, 2), step=1, offset=8), 0.0)
    assert steps_taken(assemble, [chunk(ones(2), (2, 2), step=2, offset=8)]) == [2]
    assert assemble.num_bytes == 0


def test_a_shard_that_is_given_up_takes_its_nan_along() -> None:
    assemble = assembler()
    upper, lower = Shard(rectangles=((0, 1, 0, 2),)), Shard(rectangles=((1, 2, 0, 2),))
    nan = np.full(1, np.nan, np.float32).tobytes()
    assemble.add("r", B, chunk(ones(1), (2, 2), shard=lower), 0.0)
    assemble.add("r", A, chunk(nan, (2, 2), shard=upper), 0.0)
    assemble.add("r", A, chunk(ones(2), (2, 2), shard=upper), 0.0)
    taken = assemble.add("r", B, chunk(ones(1), (2, 2), shard=lower, offset=4), 0.0).snapshot
    assert taken is not None and taken.finite


def test_what_does_not_come_in_time_is_given_up_and_may_come_again() -> None:
    assemble = assembler(assembly_timeout_seconds=10.0)
    upper = chunk(ones(2), (2, 2), shard=Shard(ranges=((0, 2),)))
    lower = chunk(ones(2), (2, 2), shard=Shard(ranges=((2, 4),)))
    assemble.add("r", A, upper, 100.0)
    assert list(assemble.expire(110.0)) == []
    assert list(assemble.expire(110.1)) == [(("r", "w", "weight", 1), {A})]
    assert assemble.num_bytes == 0 and assemble.counters["dropped_timed_out"] == 1
    assert steps_taken(assemble, [lower], B) == []
    assert steps_taken(assemble, [upper], A) == [1]


def test_a_slow_link_is_not_given_up_while_it_brings_something() -> None:
    assemble = Assemble(Limits(assembly_timeout_seconds=10.0), Counter())
    for number in range(3):
        assemble.add("r", A, chunk(ones(1), (2, 2), offset=4 * number), 9.0 * number)
        assert list(assemble.expire(9.0 * number + 9.9)) == []


HALF = Shard(ranges=((0, 2),))
REFUSED: dict[str, tuple[dict[str, Any], list[Chunk], Chunk]] = {
    "chunk_order: begins in the middle": ({}, [], chunk(ones(2), (2, 2), offset=8)),
    "chunk_order: a gap": ({}, [chunk(ones(1), (2, 2))], chunk(ones(1), (2, 2), offset=8)),
    "chunk_order: twice": (
        {},
        [chunk(ones(1), (2, 2)), chunk(ones(1), (2, 2), offset=4)],
        chunk(ones(1), (2, 2), offset=4),
    ),
    "chunk_order: another shape": ({}, [chunk(ones(2), (2, 2))], chunk(ones(2), (4, 1), offset=8)),
    "chunk_order: another shard": ({}, [chunk(ones(1), (2, 2), shard=HALF)], chunk(ones(2), (2, 2), offset=4)),
    "layer_too_large: whole": ({"max_layer_bytes": 15}, [], chunk(ones(4), (2, 2))),
    "layer_too_large: a shard of it": ({"max_layer_bytes": 15}, [], chunk(ones(1), (2, 2), shard=HALF)),
    "assembly_full: bytes": (
        {"max_layer_bytes": 16, "max_assembly_bytes": 31},
        [chunk(ones(1), (2, 2), layer="other")],
        chunk(ones(1), (2, 2)),
    ),
    "assembly_full: number": ({"max_open_layers": 1}, [chunk(ones(1), (2, 2), layer="other")], chunk(ones(1), (2, 2))),
    "too_many_layers: another": (
        {"max_layers_per_run": 1},
        [chunk(ones(1), (1, 1), layer="o")],
        chunk(ones(1), (1, 1)),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_anything_is_held(case: str) -> None:
    limits, before, refused = REFUSED[case]
    assemble = assembler(**limits)
    for item in before:
        assemble.add("r", A, item, 0.0)
    num_bytes = assemble.num_bytes
    with pytest.raises(WireError) as raised:
        assemble.add("r", A, refused, 0.0)
    assert raised.value.code == case.partition(":")[0]
    assert assemble.num_bytes == num_bytes


OTHERS = {
    "another shape": chunk(ones(2), (4, 1), shard=Shard(ranges=((2, 4),))),
    "another dtype": chunk(bytes(4), (2, 2), shard=Shard(ranges=((2, 4),)), dtype="float16"),
    "another kind": chunk(ones(2), (2, 2), shard=Shard(rectangles=((1, 2, 0, 2),))),
    "the whole": chunk(ones(4), (2, 2)),
    "one element in common": chunk(ones(2), (2, 2), shard=Shard(ranges=((1, 3),))),
    "the same": chunk(ones(2), (2, 2), shard=HALF),
}


@pytest.mark.parametrize("other", OTHERS)
def test_shards_that_disagree_are_refused(other: str) -> None:
    assemble = assembler()
    assemble.add("r", A, chunk(ones(1), (2, 2), shard=HALF), 0.0)
    with pytest.raises(WireError, match="shard_conflict"):
        assemble.add("r", B, OTHERS[other], 0.0)
    assert assemble.num_bytes == 8


def test_a_layer_has_room_for_so_many_pieces() -> None:
    assemble = assembler()
    width = 1024
    for number in range(MAX_PIECES_PER_LAYER // width):
        start = 2 * width * number
        shard = Shard(ranges=tuple((start + 2 * i, start + 2 * i + 1) for i in range(width)))
        assemble.add("r", number.to_bytes(16, "big"), chunk(ones(1), (1 << 10, 1 << 10), shard=shard), 0.0)
    with pytest.raises(WireError, match="assembly_full"):
        assemble.add("r", A, chunk(ones(1), (1 << 10, 1 << 10), shard=Shard(ranges=((1, 2),))), 0.0)


def test_a_refused_chunk_takes_no_place_of_a_run() -> None:
    assemble = assembler(max_runs=1, max_layer_bytes=15)
    with pytest.raises(WireError, match="layer_too_large"):
        assemble.add("hostile", A, chunk(ones(4), (2, 2)), 0.0)
    assert assemble.add("r", A, chunk(ones(1), (1, 1)), 0.0).snapshot is not None
    with pytest.raises(WireError, match="too_many_runs"):
        assemble.add("another", A, chunk(ones(1), (1, 1)), 0.0)


def test_a_silent_run_gives_up_its_place_unless_connected() -> None:
    assemble = assembler(max_runs=2, run_idle_seconds=10.0)
    assemble.add("old", A, chunk(ones(1), (2, 2)), 0.0)
    assert assemble.idle_run(100.0) is None, "there is room"
    assemble.add("new", A, chunk(ones(1), (2, 2)), 5.0)
    assert assemble.idle_run(10.0) is None
    assert assemble.idle_run(10.1) == "old"
    assert assemble.idle_run(15.1, {"old"}) == "new"
    assert assemble.idle_run(99.0, {"old", "new"}) is None
    assert assemble.num_bytes == 32
    assemble.forget("old")
    assert assemble.num_bytes == 16
    assemble.add("another", A, chunk(ones(1), (1, 1)), 0.0)


def values(dtype: str, *numbers: float) -> bytes:
    return torch.tensor(numbers, dtype=getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()


def with_sign_bit(dtype: str, payload: bytes) -> bytes:
    width = DTYPES[dtype].item_bytes
    return b"".join(
        payload[i : i + width - 1] + bytes([payload[i + width - 1] | 0x80]) for i in range(0, len(payload), width)
    )


def noticed(dtype: str) -> dict[str, bytes]:
    """Elements that make a matrix non-finite."""
    nan = values(dtype, math.nan)
    smallest_nan = (int.from_bytes(values(dtype, math.inf), "little") + 1).to_bytes(len(nan), "little")
    infinities = {"inf": values(dtype, math.inf), "-inf": values(dtype, -math.inf)}
    return {"nan": nan, "-nan": with_sign_bit(dtype, nan), "signalling nan": smallest_nan, **infinities}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("where", ["first chunk", "last chunk", "first shard", "last shard"])
def test_nonfinite_is_noticed_wherever_it_is(dtype: str, where: str) -> None:
    for name, element in noticed(dtype).items():
        good = values(dtype, 1.0, -2.0)
        bad = element + values(dtype, 1.0)
        first, last = (bad, good) if "first" in where else (good, bad)
        assemble = assembler()
        if "chunk" in where:
            chunks = [(A, item) for item in cut(first + last, (2, 2), len(first), dtype=dtype)]
        else:
            parts = zip((A, B), (first, last), (((0, 2),), ((2, 4),)), strict=True)
            chunks = [(s, chunk(part, (2, 2), dtype=dtype, shard=Shard(ranges=r))) for s, part, r in parts]
        *_, added = [assemble.add("r", session, item, 0.0) for session, item in chunks]
        assert added.snapshot is not None, name
        assert (added.snapshot.finite, added.snapshot.zero, added.snapshot.data.nbytes) == (False, False, 0), name
        assert assemble.num_bytes == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_zeros_of_either_sign_are_zero(dtype: str) -> None:
    limits = torch.finfo(getattr(torch, dtype))
    width = DTYPES[dtype].item_bytes
    denormal = (1).to_bytes(width, "little")
    zero, plenty = values(dtype, 0.0), values(dtype, limits.max)
    for elements, is_zero in (
        (zero * 4, True),
        (with_sign_bit(dtype, zero) * 4, True),
        (zero * 2 + with_sign_bit(dtype, zero) * 2, True),
        (zero * 3 + denormal, False),
        (with_sign_bit(dtype, denormal) + zero * 3, False),
        (plenty + with_sign_bit(dtype, plenty) + zero * 2, False),
    ):
        assemble = assembler()
        *_, added = [assemble.add("r", A, item, 0.0) for item in cut(elements, (2, 2), 2 * width, dtype=dtype)]
        assert added.snapshot is not None
        assert (added.snapshot.finite, added.snapshot.zero) == (True, is_zero)
        assert added.snapshot.data.tobytes() == (b"" if is_zero else elements)


def test_a_chunk_as_large_as_the_wire_allows_it() -> None:
    rows = MIN_CHUNK_BYTES // 4 // 1024
    matrix = np.ones((rows, 1024), np.float32)
    assert steps_taken(assembler(), list(cut(matrix.tobytes(), matrix.shape, MIN_CHUNK_BYTES))) == [1]


def of_namespace(name: str, quota: Quota) -> Callable[[str], Quota]:
    return lambda namespace: quota if namespace == name else NO_QUOTA


def test_a_namespace_has_room_for_so_many_runs_and_the_others_do_not_pay() -> None:
    assemble = Assemble(Limits(), Counter(), quota=of_namespace("ns", Quota(max_runs=2)))
    for run in ("@ns/a", "@ns/b"):
        assert assemble.add(run, A, chunk(ones(4), (2, 2)), 0.0).snapshot is not None
    with pytest.raises(WireError, match=r"quota_exceeded: namespace 'ns' has 2 runs"):
        assemble.add("@ns/c", A, chunk(ones(4), (2, 2)), 0.0)
    for run in ("@ns/a", "@other/c", "c"):
        assert assemble.add(run, A, chunk(ones(4), (2, 2), step=2), 0.0).snapshot is not None
    assemble.forget("@ns/a")
    assert assemble.add("@ns/c", A, chunk(ones(4), (2, 2)), 0.0).snapshot is not None


def test_a_namespace_has_room_for_so_many_bytes_and_gets_it_back() -> None:
    assemble = Assemble(Limits(), Counter(), quota=of_namespace("ns", Quota(max_bytes=100)))
    half = Shard(rectangles=((0, 4, 0, 2),))
    assemble.add("@ns/a", A, chunk(ones(8), (4, 4), shard=half), 0.0)
    assemble.add("@ns/b", A, chunk(ones(8), (4, 4), shard=half), 0.0)
    with pytest.raises(WireError, match=r"quota_exceeded: namespace 'ns' has a quota of 100 bytes"):
        assemble.add("@ns/a", A, chunk(ones(16), (4, 4), layer="v"), 0.0)
    assert assemble.add("a", A, chunk(ones(16), (4, 4), layer="v"), 0.0).snapshot is not None
    assert len(list(assemble.expire(1000.0))) == 2
    assert assemble.add("@ns/a", A, chunk(ones(16), (4, 4), layer="v"), 0.0).snapshot is not None


def test_what_the_history_has_is_known_after_a_restart() -> None:
    assemble = Assemble(Limits(), Counter())
    assert not assemble.knows("r")
    again = assemble.add("r", A, chunk(ones(4), (2, 2), step=7), 0.0, {("w", "weight"): 7})
    assert (again.snapshot, again.repeat, again.settled) == (None, True, True)
    assert assemble.knows("r")
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=8), 0.0).snapshot is not None
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=7), 0.0).snapshot is not None, "the run went back"
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=7, role="gradient"), 0.0).snapshot is not None
