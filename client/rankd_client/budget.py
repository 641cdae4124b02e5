"""max_overhead: the share of training time that pushing may block, kept as a bucket of seconds. Pure; time is given."""

from __future__ import annotations

import math

BURST_SECONDS = 0.02
"""What may be spent at once at the start: a fresh run of small models is not held up by book-keeping."""

SMOOTHING = 0.3
"""Weight of the newest push in the average cost per byte: a few pushes suffice to follow a machine that gets busy."""


class Budget:
    """Seconds that pushes may block the training thread: earns max_overhead × elapsed time, and each push costs what it
    took. `max_overhead` None: no limit."""

    def __init__(self, max_overhead: float | None, now_seconds: float) -> None:
        self.max_overhead = max_overhead
        self.tokens_seconds = BURST_SECONDS
        self.seconds_per_byte: float | None = None
        self.resting_until = now_seconds
        """Nothing will be affordable before: a call that comes earlier need not ask."""
        self._earned_at = now_seconds

    def affordable_bytes(self, whole_bytes: int, least_bytes: int, now_seconds: float) -> int | None:
        """How many of the `whole_bytes` that a due push would take may be copied now; None means to skip it.

        Never fewer than half, nor than `least_bytes` (the layer whose turn it is, with those of priority before it): a
        small push pays nearly the fixed cost of a whole one, and small layers would eat up what a large one waits for.
        While nothing was copied yet, nobody knows what a byte costs: a push is whole then, unless there is a debt.
        """
        if self.max_overhead is None:
            return whole_bytes
        whole_seconds = whole_bytes * (self.seconds_per_byte or 0.0)
        self._earn(whole_seconds, now_seconds)
        if whole_seconds <= self.tokens_seconds:
            return whole_bytes
        enough_bytes = min(whole_bytes, max(whole_bytes // 2, least_bytes))
        missing_seconds = enough_bytes * (self.seconds_per_byte or 0.0) - self.tokens_seconds
        if missing_seconds > 0:
            self.resting_until = now_seconds + missing_seconds / self.max_overhead if self.max_overhead else math.inf
            return None
        return int(self.tokens_seconds * whole_bytes / whole_seconds)

    def spend(self, blocked_seconds: float, num_bytes: int) -> None:
        """A due push blocked the training thread for `blocked_seconds` (one-time allocation left out) and copied
        `num_bytes`: none where it failed or nothing fitted, which has to be earned back all the same."""
        self.tokens_seconds -= blocked_seconds
        if num_bytes > 0:
            cost = blocked_seconds / num_bytes
            old = self.seconds_per_byte
            self.seconds_per_byte = cost if old is None else old + SMOOTHING * (cost - old)

    def _earn(self, whole_seconds: float, now_seconds: float) -> None:
        earned = (self.max_overhead or 0.0) * max(0.0, now_seconds - self._earned_at)
        self._earned_at = now_seconds
        capacity = max(BURST_SECONDS, 2 * whole_seconds)  # room to save up for a whole push, not for a storm of them
        self.tokens_seconds = min(capacity, self.tokens_seconds + earned)
