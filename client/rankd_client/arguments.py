"""What callers may say for a step and for a time to wait, and what it stands for."""

from __future__ import annotations

import operator
import threading
from numbers import Real
from typing import Any

from rankd_client.text import escape
from rankd_client.wire import MAX_STEP

MAX_WAIT_SECONDS = min(threading.TIMEOUT_MAX, 2**31 / 1000) - 1
"""What locks and ZeroMQ's 32 bits of milliseconds can wait: 24 days."""


class Steps:
    """Counts up where a step is left out."""

    def __init__(self) -> None:
        self._next_pushed = self._next_reported = 0

    def pushed(self, step: Any) -> int:
        """`step`, or that after the last push. Raises ValueError."""
        number = _checked(self._next_pushed if step is None else step)
        self._next_pushed = number + 1
        return number

    def reported(self, step: Any) -> int:
        """`step`, or that of the last push; where there was none, that after the last one. Raises ValueError."""
        if step is None:
            step = self._next_pushed - 1 if self._next_pushed else self._next_reported
        number = _checked(step)
        self._next_reported = number + 1
        return number


def _checked(step: Any) -> int:
    is_integer = hasattr(step, "__index__") and not isinstance(step, bool)
    if not is_integer or not 0 <= (number := operator.index(step)) <= MAX_STEP:
        raise ValueError(f"step={escape(step)}: expected an integer from 0 to 2**63 - 1")
    return number


def seconds_of(timeout: Any, default: float) -> float:
    """Seconds to wait: None is the default, a number what is nearest to it. Raises ValueError for anything else."""
    if timeout is None:
        return default
    is_number = isinstance(timeout, Real) and not isinstance(timeout, bool) and timeout == timeout  # NaN is not
    if not is_number:
        raise ValueError(f"timeout={escape(timeout)}: expected a number of seconds, or None for {default}")
    return 0.0 if timeout < 0 else MAX_WAIT_SECONDS if timeout > MAX_WAIT_SECONDS else float(timeout)
