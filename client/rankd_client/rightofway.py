"""A push goes before the outlet's thread."""

from __future__ import annotations

import time

MAX_SECONDS = 0.005
"""Given to one push: those from host memory take longer, and release the interpreter meanwhile. For as long as it has
given, the outlet does not give again: where pushes follow one another without a pause, half of the time is its own."""

LOOK_SECONDS = 0.0003


class RightOfWay:
    """The two threads share an interpreter: each call into torch releases it, and whoever handles a daemon's answers
    then keeps it for a while. `with` it, on the training thread, for a push."""

    def __init__(self) -> None:
        self._num_pushes = self._num_given = 0
        self._is_pushing = False
        self._own_until = 0.0

    def __enter__(self) -> None:
        self._num_pushes += 1
        self._is_pushing = True

    def __exit__(self, *_: object) -> None:
        self._is_pushing = False

    def give(self) -> None:
        """On the outlet's thread, before it takes something up: let a push that is under way end first, once."""
        if not self._is_pushing or self._num_given == self._num_pushes:
            return
        began = now = time.monotonic()
        if began < self._own_until:
            return
        self._num_given = self._num_pushes
        while self._is_pushing and now < began + MAX_SECONDS:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
        self._own_until = now + (now - began)
