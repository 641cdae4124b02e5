"""How much time each run got lately. Pure."""

from __future__ import annotations

from collections import deque

BUCKET_SECONDS, NUM_BUCKETS = 10.0, 12
WINDOW_SECONDS = BUCKET_SECONDS * NUM_BUCKETS
"""The last two minutes: long beside a measurement, short beside the time in which somebody looks."""


class Window:
    """Seconds by name, of the last minutes; `now` is of any clock. Bounded by the names that came in them."""

    def __init__(self, now: float) -> None:
        self._begun = now
        self._buckets: deque[tuple[float, dict[str, float]]] = deque(maxlen=NUM_BUCKETS)
        """Each with the time at which it began."""

    def add(self, name: str, seconds: float, now: float) -> None:
        if not self._buckets or now - self._buckets[-1][0] >= BUCKET_SECONDS:
            self._buckets.append((now, {}))
        bucket = self._buckets[-1][1]
        bucket[name] = bucket.get(name, 0.0) + seconds

    def shares(self, now: float) -> dict[str, float]:
        """Name → seconds in each second. A bucket that is older in part is left out."""
        span = max(1e-3, min(now - self._begun, WINDOW_SECONDS))
        found: dict[str, float] = {}
        for began, bucket in self._buckets:
            if now - began <= WINDOW_SECONDS:
                for name, seconds in bucket.items():
                    found[name] = found.get(name, 0.0) + seconds / span
        return found
