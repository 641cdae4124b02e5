"""Who waits to hear what became of a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from rankd.records import LayerStep

MAX_WAITING = 1024
"""Sessions that wait for one snapshot, unless more have sent a part of it: a peer may say hello anew and send it again
without end. An honest client keeps its session; one that is not told keeps its snapshot until it has a newer one."""


@dataclass(slots=True)
class _Step:
    num_snapshots: int = 0
    sessions: set[bytes] = field(default_factory=set)


class Waiting:
    """By (run, layer, role, step): an acknowledgement names no more than that. Where a run went back and came to a step
    again, everybody is told when the last snapshot of it is settled: told of the first, a client would forget the
    second."""

    def __init__(self) -> None:
        self._steps: dict[LayerStep, _Step] = {}

    def __contains__(self, key: LayerStep) -> bool:
        return key in self._steps

    def taken(self, key: LayerStep, sessions: Collection[bytes]) -> None:
        """A snapshot was taken, of which each of these clients sent a part."""
        step = self._steps.setdefault(key, _Step())
        step.num_snapshots += 1
        if len(step.sessions) >= MAX_WAITING:
            step.sessions.clear()
        step.sessions.update(sessions)

    def repeated(self, key: LayerStep, session: bytes) -> None:
        """A client sent again what was taken already."""
        if (step := self._steps.get(key)) is not None and len(step.sessions) < MAX_WAITING:
            step.sessions.add(session)

    def settle(self, key: LayerStep) -> set[bytes]:
        """One snapshot is dealt with; returns who may be told so."""
        step = self._steps.get(key)
        if step is None:
            return set()
        step.num_snapshots -= 1
        if step.num_snapshots:
            return set()
        return self._steps.pop(key).sessions
