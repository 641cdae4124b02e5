"""Both sides of the shared memory, here in one process."""

import numpy as np
import pytest
import torch
from works import CPU, work

from rankd.executors.apart.memory import ALIGNMENT, Buffer, Mappings, in_pieces

PAGE = 1 << 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.executors.apart.memory.MIN_BUFFER_BYTES", PAGE)


def array(num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(num_bytes).integers(0, 256, num_bytes, np.uint8)


def test_what_is_written_is_read_aligned_and_memory_is_replaced_only_where_it_is_too_small() -> None:
    buffer, mappings = Buffer(1), Mappings(CPU)
    sizes = []
    for numbers in ([3, 5, 64], [100], [PAGE, PAGE + 1], [7], [3 * PAGE, 1]):
        arrays = [array(number) for number in numbers]
        ranges, descriptor = buffer.fill(arrays)
        if descriptor is not None:
            mappings.replace(1, descriptor)
        sizes.append((buffer.num_bytes // PAGE, descriptor is not None))
        assert all(start % ALIGNMENT == 0 for start, _ in ranges)
        for given, found in zip(arrays, mappings.arrays(1, ranges), strict=True):
            assert np.array_equal(given, found)
    assert sizes == [(1, True), (1, False), (4, True), (4, False), (4, False)]


def test_memory_is_bounded_but_for_one_larger_matrix_which_takes_what_it_needs_for_its_time() -> None:
    buffer, mappings = Buffer(0, max_bytes=3 * PAGE), Mappings(CPU)
    sizes = []
    for number in (2 * PAGE + 1, 5 * PAGE, 4 * PAGE, 10, 2 * PAGE):
        _, descriptor = buffer.fill([array(number)])
        if descriptor is not None:
            mappings.replace(0, descriptor)
        sizes.append(buffer.num_bytes // PAGE)
    assert sizes == [3, 5, 5, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_for_a_gpu_it_is_page_locked_and_given_back() -> None:
    gpu = torch.device("cuda", 0)
    buffer, mappings = Buffer(0), Mappings(gpu)
    for number in (PAGE, 3 * PAGE, 5 * PAGE):  # each in memory of its own, the former's being gone
        given = array(number)
        ranges, descriptor = buffer.fill([given])
        assert descriptor is not None
        mappings.replace(0, descriptor)
        found = torch.frombuffer(mappings.arrays(0, ranges)[0], dtype=torch.uint8)
        assert found.is_pinned()
        assert np.array_equal(found.to(gpu).cpu().numpy(), given)
        del found


def test_a_batch_goes_in_pieces_that_fit_and_keeps_its_order() -> None:
    items = [work(torch.ones(side, 64), f"{side}") for side in (2, 3, 4, 40, 1, 1)]
    pieces = list(in_pieces(items, 2048))
    assert [[item.snapshot.layer for item in piece] for piece in pieces] == [["2", "3"], ["4"], ["40"], ["1", "1"]]
    for piece in pieces:
        if len(piece) > 1:
            buffer = Buffer(0, max_bytes=2048)
            _, descriptor = buffer.fill([item.snapshot.data for item in piece])
            assert descriptor is not None
            Mappings(CPU).replace(0, descriptor)
            assert buffer.num_bytes <= PAGE
    assert list(in_pieces([], 2048)) == []
