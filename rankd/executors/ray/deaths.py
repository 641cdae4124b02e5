"""Workers of a Ray cluster that died, for who looks for the reason: each is counted, and now and then told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("rankd.ray")

COUNTER = "num_ray_workers_lost"

PAUSE_SECONDS = 60.0
"""Between two lines in the log."""


class Deaths:
    """For one thread at a time. `count` adds one to the counter of that name."""

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._not_before = clock()
        self._num_untold = 0

    def __call__(self, text: str) -> None:
        """`text`: of the one that died last."""
        self._count(COUNTER)
        self._num_untold += 1
        if (now := self._clock()) >= self._not_before:
            log.warning("Ray workers died, others go on: num_since=%d, the last one: %s", self._num_untold, text)
            self._num_untold, self._not_before = 0, now + PAUSE_SECONDS
