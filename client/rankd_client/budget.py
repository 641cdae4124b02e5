"""max_overhead: the share of training time that pushing may take, kept as a bucket of seconds. Pure; time is given."""

from __future__ import annotations

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
        self._earned_at = now_seconds

    def affordable_bytes(self, whole_bytes: int, least_bytes: int, now_seconds: float) -> int:
        """How many of the `whole_bytes` that a due push would take may be copied now; 0 means to skip it.

        Never fewer than half, nor than `least_bytes` (the layer whose turn it is, with those of priority before it): a
        small push pays nearly the fixed cost of a whole one, and small layers would eat up what a large one waits for.
        The first push, whose cost nobody knows, is always whole.
        """
        if self.max_overhead is None or self.seconds_per_byte is None:
            return whole_bytes
        whole_seconds = whole_bytes * self.seconds_per_byte
        self._earn(whole_seconds, now_seconds)
        if whole_seconds <= self.tokens_seconds:
            return whole_bytes
        affordable = max(0, int(self.tokens_seconds / self.seconds_per_byte))
        return affordable if affordable >= min(whole_bytes, max(whole_bytes // 2, least_bytes)) else 0

    def spend(self, blocked_seconds: float, num_bytes: int) -> None:
        """A push of `num_bytes` blocked the training thread for `blocked_seconds` (one-time allocation left out)."""
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
