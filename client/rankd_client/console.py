"""What the client has to say to a person: lines on stderr, and faults through `logging`, never many of them."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rankd_client.text import alert_line, escape

LOG_SECONDS = 60.0
"""A daemon that comes and goes is told of so rarely."""

ECHO_LINES, ECHO_SECONDS = 20, 10.0
MAX_ECHO_LINES = 200
"""Of any severity in ECHO_SECONDS: more than the layers of most models, and a daemon gone mad does not fill a disk."""

log = logging.getLogger("rankd_client")


def say(line: str) -> None:
    """One line on stderr. A closed or broken stderr is not the training loop's problem."""
    with contextlib.suppress(Exception):
        print(f"rankd: {line}", file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """One line to the log. Neither are handlers that raise, which are anybody's, the training loop's problem."""
    with contextlib.suppress(Exception):
        log.warning("rankd: %s", line)


def inform(line: str) -> None:
    """One line to the log, for whoever looks at its infos."""
    with contextlib.suppress(Exception):
        log.info("rankd: %s", line)


def describe(error: BaseException) -> str:
    """Type and text of an exception, if it has one that can be read."""
    try:
        return f"{type(error).__name__}: {escape(str(error), 500)}"
    except Exception:
        return type(error).__name__


def show_bytes(num_bytes: int) -> str:
    """Decimal units, as disks and networks are sold: `112 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            amount = num_bytes / size
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{num_bytes} bytes"


class Echo:
    """One line on stderr for each alert, but never a screenful: a run that goes back to a checkpoint has an alert for
    each of its layers. Beyond ECHO_LINES in ECHO_SECONDS those of severity info are counted, beyond MAX_ECHO_LINES all,
    and the next line says how many."""

    def __init__(self) -> None:
        self._began = -ECHO_SECONDS
        self._num_shown = 0
        self._num_held = {"info": 0, "warning or critical": 0}

    def __call__(self, alert: Mapping[str, Any], now_seconds: float) -> None:
        if now_seconds - self._began >= ECHO_SECONDS:
            self.close()
            self._began, self._num_shown = now_seconds, 0
        info = alert.get("severity") == "info"
        if self._num_shown >= (ECHO_LINES if info else MAX_ECHO_LINES):
            self._num_held["info" if info else "warning or critical"] += 1
            return
        self._num_shown += 1
        say(alert_line(alert))

    def close(self) -> None:
        """Say how many were held back, if any."""
        for severity, num_held in self._num_held.items():
            if num_held:
                say(f"and {num_held} more of severity {severity}; `rankd tail` shows all")
                self._num_held[severity] = 0


class FaultLog:
    """One log line for each kind of fault, and one whenever the daemon at `address` is gone or back. One that comes and
    goes is told of every LOG_SECONDS: an outage that lasts until then is told then, one that is over by then counted.

    clock: monotonic seconds.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._told: set[str] = set()
        self._why: str | None = None
        """Why the daemon is gone; None: it is not."""
        self._is_told = False
        """That it is."""
        self._next_at = -math.inf
        self._num_untold = 0

    def once(self, kind: str, line: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warn(escape(line, 600))

    def down(self, why: str) -> None:
        """It is gone: as often as that is seen."""
        self._why = why
        self.look()

    def look(self) -> None:
        """To be called now and then: is it time to tell?"""
        if self._why is None or self._is_told or (now := self._clock()) < self._next_at:
            return
        often = f" (and {self._num_untold} times since that was said last)" if self._num_untold else ""
        self._is_told, self._next_at, self._num_untold = True, now + LOG_SECONDS, 0
        warn(f"{self._address}: {escape(self._why, 600)}{often}; training goes on, trying again")

    def refused(self, code: str, why: str) -> None:
        """The daemon is there and says why it does not take us: told also where it was told that nobody answers."""
        kind = f"refused-{code}"
        if self._is_told:
            self.once(kind, f"{self._address}: {why}; training goes on, trying again")
            return
        self.down(why)
        if self._is_told:
            self._told.add(kind)

    def up(self) -> None:
        if self._is_told:
            warn(f"connected to {self._address}")
        elif self._why is not None:
            self._num_untold += 1
        self._why, self._is_told = None, False
