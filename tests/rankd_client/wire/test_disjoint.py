"""The sweep, against the cells that rectangles really have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rankd_client.wire import disjoint

intervals = st.tuples(st.integers(0, 6), st.integers(1, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
rectangles = st.tuples(intervals, intervals).map(lambda pair: (*pair[0], *pair[1]))


@given(st.lists(rectangles, max_size=6))
def test_disjoint_means_that_no_cell_comes_twice(pieces: list[tuple[int, int, int, int]]) -> None:
    cells = [(row, col) for r0, r1, c0, c1 in pieces for row in range(r0, r1) for col in range(c0, c1)]
    assert disjoint(pieces) == (len(cells) == len(set(cells)))


def test_pieces_that_touch_do_not_overlap() -> None:
    assert disjoint((row, row + 1, col, col + 1) for row in range(32) for col in range(32))
    assert disjoint([])


def test_coordinates_may_be_as_large_as_a_tensor() -> None:
    end = 1 << 48
    assert disjoint([(0, end, 0, 1), (0, end, 1, end)])
    assert not disjoint([(0, end, 0, 2), (end - 1, end, 1, end)])
