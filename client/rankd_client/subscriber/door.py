"""Whether a daemon that is there lets us in."""

from __future__ import annotations

from rankd_client.greeting import Look
from rankd_client.keys import Key, needs_key

LOOK_TICKS = 2
OPEN_TICKS = 4
"""Ticks, a second each, of absence between two looks at who is there, and between two openings of the sockets."""

NUM_LOOKS = 3
"""That have to find the same, with new sockets in between: a daemon that has just begun is not one that refuses."""


class Door:
    """Fed with ticks; `refusal` says in a sentence why nothing will come, once that is known."""

    def __init__(self, key: Key | None) -> None:
        self.refusal = ""
        self.suspicion = ""
        """What one look has found."""
        self._look = Look(key)
        self._num_ticks = 0
        self._num_found = 0

    def on_tick(self, absent: bool, let_in: bool, address: str) -> bool:
        """A second went by. Whether the sockets are to be opened anew."""
        found = self._look.take()
        if not absent:
            self._num_ticks = 0
        if not absent or let_in:
            self._num_found, self.suspicion = 0, ""
        elif found is not None:
            self._num_found, self.suspicion = (self._num_found + 1, found) if found else (0, "")
            self.refusal = self.suspicion if self._num_found >= NUM_LOOKS else ""
        if not absent:
            return False
        self._num_ticks += 1
        if self._num_ticks % LOOK_TICKS == 1 and not let_in and needs_key(address):
            self._look.start(address)
        return self._num_ticks % OPEN_TICKS == 0
