"""Do rectangles overlap? Sweep over the rows, O(k log k): a peer chooses k, so comparing all pairs will not do."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

Rectangle = tuple[int, int, int, int]


def disjoint(rectangles: Iterable[Rectangle]) -> bool:
    """Whether no two of the non-empty `[row, row_end, col, col_end)` share an element. A flat range is a rectangle of
    one row: `(0, 1, start, end)`."""
    events = []
    for row, row_end, col, col_end in rectangles:
        events += [(row, True, col, col_end), (row_end, False, col, col_end)]  # False sorts first: ends before starts
    starts: list[int] = []  # column intervals open at the current row: disjoint, so both lists are sorted
    ends: list[int] = []
    for _, opens, col, col_end in sorted(events):
        at = bisect_left(starts, col)
        if not opens:
            del starts[at], ends[at]
            continue
        if (at and ends[at - 1] > col) or (at < len(starts) and starts[at] < col_end):
            return False
        starts.insert(at, col)
        ends.insert(at, col_end)
    return True
