"""The interval that the cost of pushing asks for: longer soon, shorter only where that would clearly do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CLEARLY = 0.8
"""Of `max_overhead`: what a shorter interval must keep to, as costs waver."""

CHEAP_SECONDS = 20.0
"""For so long, without a break."""


@dataclass(slots=True)
class Costs:
    """Of one run. Intervals are in steps; 0: any will do."""

    every: int = 0
    _needed: int | None = None
    """At the last review."""
    _cheap_since: float | None = None
    _fitting: int = 0
    """The longest since then."""

    def review(self, needed: int, fitting: int, now: float) -> int:
        """The interval to keep, where the costs of this moment need `needed` to keep to their limit, and `fitting` to
        keep to CLEARLY of it; `now` in monotonic seconds. What was needed once only, after the first time, may be a
        single push that was held up."""
        lasting = needed if self._needed is None else min(needed, self._needed)
        self._needed = needed
        self.every = max(self.every, lasting)
        if fitting >= self.every:
            self._cheap_since, self._fitting = None, 0
            return self.every
        if self._cheap_since is None:
            self._cheap_since = now
        self._fitting = max(self._fitting, fitting)
        if now - self._cheap_since >= CHEAP_SECONDS:
            self.every, self._cheap_since, self._fitting = self._fitting, None, 0
        return self.every
