"""How often each layer went back to a step that it was at before: after a return to a checkpoint, in one process.

Counted where every process of a job counts alike: as a layer is chosen to go, which is a function of the steps. What
becomes of its snapshot then, in the outbox and on the disk, is another matter in each of them.
"""

from __future__ import annotations

MAX_LINES = 10_000
"""Layers that are remembered; whoever pushes under ever new names begins anew, at a number that none had."""


class Returns:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, int]] = {}
        """Of each (layer, role), its last step and the number then."""
        self._first = 0

    def count(self, line: tuple[str, str], step: int) -> int:
        """(layer, role) goes at `step`: how often it had gone back by then, this time with it."""
        last = self._last.get(line)
        if last is not None:
            num_returns = last[1] + (step <= last[0])
        else:
            if len(self._last) >= MAX_LINES:
                self._first = 1 + max(number for _, number in self._last.values())
                self._last.clear()
            num_returns = self._first
        self._last[line] = step, num_returns
        return num_returns
