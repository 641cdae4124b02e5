"""So many a second on average, some at once: a token bucket. Pure, times are arguments."""

from __future__ import annotations


class Bucket:
    """Full at first."""

    def __init__(self, rate_per_second: float, size: float) -> None:
        self._rate = rate_per_second
        self._size = self._level = size
        self._filled_at: float | None = None

    def take(self, now: float) -> bool:
        """Whether one more may go."""
        if self._filled_at is not None:
            self._level = min(self._size, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True
