"""Chunks become snapshots: in order, once, and in time."""

from collections import Counter

import numpy as np
import pytest
from chunks import A, B, assembler, chunk, cut, ones, steps_taken

from rankd.config import Limits
from rankd.race import Lost
from rankd.stages.assemble import Assemble
from rankd.waiting import MAX_WAITING
from rankd_client.wire import MIN_CHUNK_BYTES, Shard, WireError


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


def test_a_repeat_waits_with_the_first_until_settled() -> None:
    assemble = assembler()
    item = chunk(ones(4), (2, 2))
    taken = assemble.add("r", A, item, 0.0).snapshot
    assert taken is not None
    added = assemble.add("r", B, item, 0.0)
    assert (added.snapshot, added.settled, assemble.counters["num_repeats"]) == (None, False, 1)
    assert assemble.settle((*taken.key, taken.step)) == {A, B}
    added = assemble.add("r", B, item, 0.0)
    assert (added.settled, assemble.counters["num_repeats"]) == (True, 2)
    assert assemble.num_bytes == 0
    assert assemble.settle((*taken.key, taken.step)) == set()


def test_the_same_step_again_after_going_back_is_settled_when_all_of_it_is() -> None:
    """An acknowledgement names the step alone: told of the first, a client would forget the second, which may be lost
    yet."""
    assemble = assembler()
    key = ("r", "w", "weight", 5)
    assert steps_taken(assemble, [chunk(ones(4), (2, 2), step=step) for step in (5, 4, 5)]) == [5, 4, 5]
    assert assemble.settle(key) == set(), "the first is recorded, the second is not"
    assert not assemble.add("r", B, chunk(ones(4), (2, 2), step=5), 0.0).settled
    assert assemble.settle(key) == {A, B}
    assert assemble.add("r", B, chunk(ones(4), (2, 2), step=5), 0.0).settled


def test_who_is_sending_a_step_again_is_not_told_of_the_first() -> None:
    assemble = assembler()
    assert steps_taken(assemble, [chunk(ones(4), (2, 2), step=step) for step in (5, 4)]) == [5, 4]
    assemble.add("r", B, chunk(ones(2), (2, 2), step=4), 0.0)
    assemble.add("r", A, chunk(ones(2), (2, 2), step=5), 0.0)
    assert assemble.settle(("r", "w", "weight", 4)) == {A, B}
    assert assemble.settle(("r", "w", "weight", 5)) == set()
    assert steps_taken(assemble, [chunk(ones(2), (2, 2), step=5, offset=8)]) == [5]
    assert assemble.settle(("r", "w", "weight", 5)) == {A}


def test_so_many_sessions_wait_for_one_snapshot_and_no_more() -> None:
    assemble = assembler()
    key = ("r", "w", "weight", 5)
    sessions = [number.to_bytes(16, "big") for number in range(MAX_WAITING + 10)]
    for session in sessions:
        assemble.add("r", session, chunk(ones(4), (2, 2), step=5), 0.0)
    assert assemble.settle(key) == set(sessions[:MAX_WAITING])
    for session in sessions:
        steps_taken(assemble, [chunk(ones(4), (2, 2), step=step) for step in (4, 5)], session)
    *others, last = [assemble.settle(key) for _ in sessions]
    assert not any(others) and sessions[-1] in last and len(last) <= MAX_WAITING


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


def test_a_newer_step_leaves_the_whole_shards_of_older_ones_for_the_other_processes() -> None:
    assemble = assembler()
    upper, lower = Shard(ranges=((0, 2),)), Shard(ranges=((2, 4),))
    for step, payload in ((1, ones(2)), (2, ones(1)), (3, ones(1))):
        assemble.add("r", A, chunk(payload, (2, 2), step=step, shard=upper), 0.0)
    assert assemble.num_bytes == 16, "step 2 is given up: its shard was not whole"
    assemble.add("r", A, chunk(ones(1), (2, 2), step=1, shard=upper), 0.0)
    assert assemble.num_bytes == 8, "it sends step 1 anew, and has given up step 3"
    assemble.add("r", A, chunk(ones(1), (2, 2), step=1, shard=upper, offset=4), 0.0)
    assert steps_taken(assemble, [chunk(ones(2), (2, 2), step=1, shard=lower)], B) == [1]
    assert assemble.num_bytes == 0


def test_what_does_not_come_in_time_is_given_up_and_may_come_again() -> None:
    assemble = assembler(assembly_timeout_seconds=10.0)
    upper = chunk(ones(2), (2, 2), shard=Shard(ranges=((0, 2),)))
    lower = chunk(ones(2), (2, 2), shard=Shard(ranges=((2, 4),)))
    assemble.add("r", A, upper, 100.0)
    assert assemble.expire(110.0) == []
    assert assemble.expire(110.1) == [Lost(("r", "w", "weight", 1), frozenset([A]), "timed_out")]
    assert assemble.num_bytes == 0 and assemble.counters["dropped_timed_out"] == 1
    assert steps_taken(assemble, [lower], B) == []
    assert steps_taken(assemble, [upper], A) == [1]


def test_a_slow_link_is_not_given_up_while_it_brings_something() -> None:
    assemble = Assemble(Limits(assembly_timeout_seconds=10.0), Counter())
    for number in range(3):
        assemble.add("r", A, chunk(ones(1), (2, 2), offset=4 * number), 9.0 * number)
        assert assemble.expire(9.0 * number + 9.9) == []


def test_a_chunk_as_large_as_the_wire_allows_it() -> None:
    rows = MIN_CHUNK_BYTES // 4 // 1024
    matrix = np.ones((rows, 1024), np.float32)
    assert steps_taken(assembler(), list(cut(matrix.tobytes(), matrix.shape, MIN_CHUNK_BYTES))) == [1]


def test_what_the_history_has_is_known_after_a_restart() -> None:
    assemble = Assemble(Limits(), Counter())
    assert assemble.asks("r", chunk(ones(4), (2, 2), step=7))
    again = assemble.add("r", A, chunk(ones(4), (2, 2), step=7), 0.0, {("w", "weight"): 7})
    assert (again.snapshot, again.settled) == (None, True)
    assert not assemble.asks("r", chunk(ones(4), (2, 2), step=8))
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=8), 0.0).snapshot is not None
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=7), 0.0).snapshot is not None, "the run went back"
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=7, role="gradient"), 0.0).snapshot is not None
