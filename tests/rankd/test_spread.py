"""Work on a stretch of bytes, by several threads."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from rankd.spread import LEAST_BYTES, Helpers

STEP = 1000


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4])
@pytest.mark.parametrize("num_bytes", [1, STEP, LEAST_BYTES, 2 * LEAST_BYTES, 3 * LEAST_BYTES + 7, 9 * LEAST_BYTES - 1])
def test_every_byte_is_in_one_part_and_they_begin_at_steps(num_threads: int, num_bytes: int) -> None:
    start = 12_345
    parts = Helpers(num_threads).spread(start, start + num_bytes, STEP, lambda *part: part)
    assert (parts[0][0], parts[-1][1]) == (start, start + num_bytes)
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    assert all((begin - start) % STEP == 0 and end > begin for begin, end in parts)
    assert len(parts) == max(1, min(num_threads, num_bytes // LEAST_BYTES))


def test_they_work_at_once() -> None:
    all_here = threading.Barrier(3)
    assert sorted(Helpers(3).spread(0, 3 * LEAST_BYTES, STEP, lambda *_: all_here.wait(20))) == [0, 1, 2]


@pytest.mark.parametrize("at", [0, LEAST_BYTES])
def test_a_fault_is_raised_when_nobody_works_any_more(at: int) -> None:
    ended = []

    def work(start: int, end: int) -> None:
        if start <= at < end:
            raise ZeroDivisionError
        threading.Event().wait(0.1)
        ended.append(start)

    with pytest.raises(ZeroDivisionError):
        Helpers(2).spread(0, 2 * LEAST_BYTES, STEP, work)
    assert len(ended) == 1


def test_by_itself_it_leaves_most_cores_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_cores, num_parts in ((1, 1), (4, 1), (7, 1), (8, 2), (16, 4), (128, 4)):
        monkeypatch.setattr("rankd.spread.os.sched_getaffinity", lambda _, n=num_cores: set(range(n)))
        assert len(Helpers().spread(0, 100 * LEAST_BYTES, STEP, lambda *part: part)) == num_parts


@pytest.mark.parametrize("num_given", [0, 1])
def test_where_the_system_has_no_more_threads_the_caller_does_it(
    num_given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def starting(thread: threading.Thread) -> None:
        if len(started) == num_given:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    helpers = Helpers(3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", starting)
        for _ in range(2):
            assert helpers.spread(0, 3 * LEAST_BYTES, STEP, lambda *part: part) == [(0, 3 * LEAST_BYTES)]
    assert len(started) == num_given
