"""Memory that is used again: never by two at once, never more than the bound, and given back when nobody needs it."""

from __future__ import annotations

import gc
import threading
from itertools import pairwise

import numpy as np
import pytest

from rankd.buffers import LEAST_BYTES, STEP_BYTES, TRIM_SECONDS, Buffers

MIB = 1 << 20


def address(array: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(array.ctypes.data)


def test_memory_comes_back_with_the_last_view_of_it() -> None:
    buffers = Buffers()
    first = buffers.empty(3 * MIB)
    first[:] = 7
    at, view = address(first), first[10:20].view(np.uint16)
    del first
    assert buffers.idle_bytes == 0
    other = buffers.empty(3 * MIB)
    assert address(other) != at
    assert view.tolist() == [0x0707] * 5
    del view
    assert buffers.idle_bytes == 4 * MIB
    assert address(buffers.empty(4 * MIB)) == at  # of the same size, once it is rounded up


def test_no_two_hold_the_same_bytes() -> None:
    buffers = Buffers()
    held = [buffers.empty(size) for size in (MIB, 2 * MIB, 2 * MIB, 5 * MIB, 5 * MIB, 6 * MIB) for _ in range(3)]
    spans = sorted((address(array), address(array) + array.nbytes) for array in held)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(array.flags.writeable and array.dtype == np.uint8 and address(array) % 64 == 0 for array in held)


def test_small_ones_are_malloc_s() -> None:
    buffers = Buffers()
    del (array := [buffers.empty(LEAST_BYTES - 1)])[0]
    assert array == [] and buffers.idle_bytes == 0


def test_no_more_is_kept_than_the_bound() -> None:
    buffers = Buffers(max_idle_bytes=5 * STEP_BYTES)
    held = [buffers.empty(STEP_BYTES) for _ in range(10)]
    held.clear()
    assert buffers.idle_bytes == 5 * STEP_BYTES


def test_what_was_idle_all_the_time_goes_back_to_the_system() -> None:
    buffers = Buffers()
    buffers.trim(1000.0)
    held = [buffers.empty(2 * MIB) for _ in range(4)]
    held.clear()
    buffers.trim(1000.0 + TRIM_SECONDS)
    assert buffers.idle_bytes == 8 * MIB  # some of them may have been needed a moment ago
    one = buffers.empty(2 * MIB)
    del one
    buffers.trim(1000.0 + 2 * TRIM_SECONDS - 1)
    assert buffers.idle_bytes == 8 * MIB
    buffers.trim(1000.0 + 2 * TRIM_SECONDS)
    assert buffers.idle_bytes == 2 * MIB
    buffers.trim(1000.0 + 3 * TRIM_SECONDS)
    assert buffers.idle_bytes == 0


@pytest.mark.parametrize("num_threads", [4])
def test_threads_may_let_go_at_any_time(num_threads: int) -> None:
    buffers = Buffers()
    faults: list[str] = []

    def work(mark: int) -> None:
        for _ in range(200):
            array = buffers.empty(MIB)
            array[::4096] = mark
            if not (array[::4096] == mark).all():
                faults.append(f"{mark} was overwritten")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, num_threads + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert faults == []
    assert 0 < buffers.idle_bytes <= num_threads * STEP_BYTES
