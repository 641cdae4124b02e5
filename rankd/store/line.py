"""The current line of a run: what still counts of it after a trainer went back to a checkpoint.

The history keeps every row. A layer goes back where a sound (finite, not all-zero) measurement has the step of the
sound one before it or an earlier one; the layer's rows recorded before it, of its step or a later one, are then void.
Only sound rows tell, as for the detectors: a non-finite one is measured ahead of its turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rankd.records import Measurement

if TYPE_CHECKING:
    from rankd.store.reader import Reader

RETURNS = """
SELECT l.name, l.role, n, step FROM (
    SELECT layer_id, n, step, lag(step) OVER (ORDER BY n) AS before FROM measurement
    WHERE layer_id = ? AND n <= ? AND step IS NOT NULL AND finite AND NOT zero
) JOIN layer l USING (layer_id) WHERE step <= before ORDER BY n
"""


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
        return cls(row for layer_id in layer_ids for row in reader.rows(RETURNS, layer_id, last_n))

    def holds(self, measurement: Measurement, n: int) -> bool:
        """Whether it still counts. One without a step always does."""
        key = (measurement.layer, measurement.role)
        if measurement.step is None or key not in self._earliest:
            return True
        later = bisect_right(self._numbers[key], n)
        return later == len(self._earliest[key]) or measurement.step < self._earliest[key][later]

    def holds_each(
        self, layer: str, role: str, n: npt.NDArray[np.float64], steps: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """The same for many measurements of one layer at once, all of them with a step."""
        later = np.searchsorted(self._numbers.get((layer, role), []), n, side="right")
        earliest = np.array([*self._earliest.get((layer, role), []), np.inf])
        return steps < earliest[later]
