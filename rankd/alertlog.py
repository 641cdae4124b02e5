"""The daemon's log of alerts: a line each, but never so many or so long that a peer could fill a disk with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from rankd.gate.bucket import Bucket

log = logging.getLogger("rankd.daemon")

LOGGED = ("run", "layer", "step", "rule", "state", "severity")
MAX_VALUE_CHARACTERS = 200

LINES_PER_SECOND, LINES_AT_ONCE = 1.0, 1000.0
"""A model of a thousand layers that all fire is told of whole."""


class AlertLog:
    """`clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines = Bucket(LINES_PER_SECOND, LINES_AT_ONCE)
        self._num_left_out = 0

    def __call__(self, alert: Mapping[str, Any]) -> None:
        if not self._lines.take(self._clock()):
            self._num_left_out += 1
            return
        if self._num_left_out:
            log.info("alerts num_left_out=%d: too many for this log; they are in the stream", self._num_left_out)
            self._num_left_out = 0
        log.info("alert %s", " ".join(f"{key}={_shown(alert[key])}" for key in LOGGED))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS] + "…"
