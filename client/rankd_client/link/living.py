"""Links whose thread runs: at the interpreter's end they send what is pending."""

from __future__ import annotations

import atexit
from typing import Protocol

import zmq.utils.garbage  # noqa: F401  # now: hooks at the end run in reverse order, and ours needs it alive

CLOSE_SECONDS = 2.0


class Stoppable(Protocol):
    def stop(self) -> None: ...
    def join(self, timeout_seconds: float) -> None: ...


living: set[Stoppable] = set()
"""They alone: each holds an outbox, with its memory."""


@atexit.register
def _end() -> None:
    """Not a finalizer of each: a client that nobody refers to any more still has things to send."""
    for link in (left := list(living)):
        link.stop()
    for link in left:
        link.join(CLOSE_SECONDS + 0.5)
