"""The current line of a run: what still counts of it after a trainer went back to a checkpoint.

The history keeps every row. A layer goes back where a measurement is at the step of the last sound (finite, not
all-zero) one before it, or at an earlier step: the layer's rows recorded before it, of its step or a later one, are
then void. Only sound ones are compared with, because the others are recorded ahead of their turn: what comes after
them may be at an earlier step though nothing went back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rankd.records import Measurement
from rankd.store.rows import INT, TEXT, RowType

if TYPE_CHECKING:
    from rankd.store.reader import Reader

STEPS = """
SELECT n, step, finite AND NOT zero FROM measurement WHERE layer_id = ? AND n <= ? AND step IS NOT NULL ORDER BY n
"""

IS_STRAIGHT = """
SELECT NOT EXISTS (
    SELECT 1 FROM (
        SELECT step, lag(step) OVER (ORDER BY n) AS before FROM measurement
        WHERE layer_id = ? AND n <= ? AND step IS NOT NULL
    ) WHERE step <= before
)
"""
"""Whether steps only grow: nearly always so, and found three times as fast as by looking at each."""

_NAME = RowType(TEXT, TEXT)
_STEP = RowType(INT, INT, INT)


class Line:
    """Which rows of some layers are on the current line; from the returns (layer, role, n, step), in order of n."""

    def __init__(self, returns: Iterable[tuple[str, str, int, int]]) -> None:
        steps: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for layer, role, n, step in returns:
            self._numbers[layer, role].append(n)
            steps[layer, role].append(step)
        # the earliest step that the run went back to, at each return or later
        self._earliest = {key: list(accumulate(reversed(values), min))[::-1] for key, values in steps.items()}

    @classmethod
    def read(cls, reader: Reader, layer_ids: Iterable[int | None], last_n: int) -> Line:
        """Of these layers, as recorded up to `last_n`; a look for each layer."""
        names = "SELECT name, role FROM layer WHERE layer_id = ?"
        return cls(
            (name, role, n, step)
            for layer_id in layer_ids
            if reader.rows(IS_STRAIGHT, layer_id, last_n) == [(0,)]
            for name, role in reader.read(_NAME.check, names, layer_id)
            for n, step in _returns(reader.read(_STEP.check, STEPS, layer_id, last_n))
        )

    def holds(self, measurement: Measurement, n: int) -> bool:
        """Whether it still counts. One without a step always does."""
        key = (measurement.layer, measurement.role)
        if measurement.step is None or key not in self._earliest:
            return True
        later = bisect_right(self._numbers[key], n)
        return later == len(self._earliest[key]) or measurement.step < self._earliest[key][later]

    def holds_each(
        self, layer: str, role: str, n: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """The same for many measurements of one layer at once, all of them with a step."""
        later = np.searchsorted(self._numbers.get((layer, role), []), n, side="right")
        earliest = np.array([*self._earliest.get((layer, role), []), 0], np.int64)
        held: npt.NDArray[np.bool_] = (later == len(earliest) - 1) | (steps < earliest[later])
        return held


def _returns(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, int]]:
    """(n, step) of what went back, of a layer's (n, step, sound)."""
    last_sound: int | None = None
    for n, step, sound in rows:
        if last_sound is not None and step <= last_sound:
            yield n, step
        if sound:
            last_sound = step
