"""Is the daemon there, and did all of its heartbeats come?"""

from __future__ import annotations

SILENT_TICKS = 3
"""Ticks, a second each, without one of the daemon's heartbeats, a second apart, after which it counts as absent."""

MAX_NAMESPACES = 10_000
"""Namespaces whose heartbeats are followed; more are forgotten together, and asked about."""


class Presence:
    """Heartbeats are numbered per namespace, and have its name as their run."""

    def __init__(self) -> None:
        self.absent = False
        self._expected: dict[str, int] = {}
        self._heard = False  # since the last tick
        self._num_silent_ticks = 0

    @property
    def ask_again(self) -> bool:
        """Whether another SILENT_TICKS have gone by in silence."""
        return self._num_silent_ticks > 0 and self._num_silent_ticks % SILENT_TICKS == 0

    def on_stream(self) -> None:
        self._expected.clear()

    def on_heartbeat(self, namespace: str, seq: int) -> bool:
        """Whether it follows the one before, and the daemon was there in between."""
        follows = self._expected.get(namespace) == seq and not self.absent
        if len(self._expected) >= MAX_NAMESPACES:
            self._expected.clear()
        self._expected[namespace] = seq + 1
        self._heard, self.absent = True, False
        return follows

    def on_tick(self) -> bool:
        """A second went by. Whether there was a heartbeat in it."""
        heard, self._heard = self._heard, False
        self._num_silent_ticks = 0 if heard else self._num_silent_ticks + 1
        self.absent = self.absent or self._num_silent_ticks >= SILENT_TICKS
        return heard
