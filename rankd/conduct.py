"""How connections behave from one heartbeat to the next, and which of them are cut off for it."""

from __future__ import annotations

from collections import Counter

from rankd.door import Door, Source

CUT_FOR_ONE = frozenset({"not_allowed", "credit_exceeded"})
"""Faults that no honest client commits; a revoked key is at the end of its rights here. The connection ends with the
next heartbeat, so that the refusal, by which a trainer's log says why, gets there first."""

MAX_FAULTS = 100
"""Refusals of one connection within one heartbeat, after which it is cut off: an honest client stops at the first."""

MAX_HELLOS = 3
"""Hellos of one connection within one heartbeat that are no faults: an honest client waits for the answer."""

NO_FAULT = frozenset(
    {
        *("assembly_full", "layer_too_large", "quota_exceeded", "too_many_layers", "too_many_runs"),
        *("not_lent", "loan_ended"),
    }
)
"""A client cannot know what there is room for, and may be refused so with each of its layers in turn; nor what of its
memory was read, when it takes that back."""


class Conduct:
    """Of the connections behind `door`, by the ROUTER's names for them."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._num_faults: Counter[bytes] = Counter()
        self._num_hellos: Counter[bytes] = Counter()
        self._ending: dict[bytes, tuple[Source, str]] = {}
        """Connections to be cut off with the next heartbeat, and why."""
        self._seemed_gone: dict[bytes, float] = {}
        self._seem_gone: dict[bytes, float] = {}
        """At the last heartbeat and at this one; and when each was heard last."""

    def count_fault(self, identity: bytes, source: Source, fault: str) -> bool:
        """Whether this fault was the last: the connection is cut off, now or soon. A client that the daemon
        forgot is told so as often as it takes."""
        if fault == "no_hello":
            return False
        self._num_faults[identity] += 1
        if self._num_faults[identity] >= MAX_FAULTS:
            self._door.cut(source, fault)
            return True
        if fault in CUT_FOR_ONE:
            self._ending[identity] = source, fault
            return True
        return False

    def count_hello(self, identity: bytes) -> bool:
        """Whether this hello is one too many."""
        self._num_hellos[identity] += 1
        return self._num_hellos[identity] > MAX_HELLOS

    def is_gone(self, identity: bytes, seen_at: float) -> bool:
        """Whether a connection that is silent, or broke, says nothing more: not before it seemed so at two heartbeats,
        with nothing heard between. What it said last, a bye above all, may wait to be read, and does for certain where
        the daemon itself stood still."""
        self._seem_gone[identity] = seen_at
        return self._seemed_gone.get(identity) == seen_at

    def heartbeat(self) -> None:
        """Ends what is to end, and begins to count anew."""
        for source, fault in self._ending.values():
            self._door.cut(source, fault)
        self._ending.clear()
        self._num_faults.clear()
        self._num_hellos.clear()
        self._seemed_gone, self._seem_gone = self._seem_gone, {}
