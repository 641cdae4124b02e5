"""The outbox of a sync: each snapshot's memory is its own, and what becomes of it is told."""

from __future__ import annotations

import queue
import sys
from dataclasses import dataclass
from typing import NoReturn

from rankd_client.arena import Arena, Block, Memory, Region
from rankd_client.outbox import Outbox
from rankd_client.reports import Report, Reports
from rankd_client.snapshot import Snapshot
from rankd_client.wire import Chunk, Reported

DROPPED = "dropped"
"""Of numbers that could not be sent, to a daemon that takes none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a snapshot: `word` is "recorded", "superseded", DROPPED or the code of a refusal. It was sent
    `num_again` times more than once."""

    key: tuple[str, str]
    step: int
    word: str
    num_again: int


class Cargo(Outbox):
    """Holds one snapshot, or numbers, of each (layer, role): what becomes of it is heard before the next is put in."""

    def __init__(self) -> None:
        super().__init__(Arena(0, _nothing))
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.num_waiting = 1  # always: each answer brings the next step of its layer
        self._num_again: dict[tuple[str, str], int] = {}
        # Not within what a trainer may hold: what is under way is bounded by the shipment, and all of it counts.
        self.reports = Reports(self._changed, self._orders, self._comes_before, sys.maxsize, self._dropped)

    def put(self, chunk: Chunk, body: bytearray) -> None:
        """A whole matrix, as its first chunk has it, and its bytes."""
        region = Region(Block(Memory(memoryview(body)), len(body)), 0, len(body), len(body))
        snapshot = Snapshot(
            chunk.layer, chunk.step, region, chunk.shape, chunk.dtype, chunk.source_dtype, chunk.role, written=True
        )
        with self._changed:
            self._queue[snapshot.key] = snapshot

    def put_numbers(self, numbers: Reported) -> None:
        """What a trainer computed itself."""
        self.reports.put(numbers.layer, numbers.role, numbers.step, numbers.body)

    def settle(self, layer: str, role: str, step: int, outcome: str = "recorded") -> bool:
        known = super().settle(layer, role, step, outcome)
        if known:
            self._tell((layer, role), step, outcome)
        return known

    def rewind(self) -> None:
        with self._changed:
            begun = {*self._awaiting, *([self._sending.key] if self._sending is not None else [])}
            for key in begun:
                self._num_again[key] = self._num_again.get(key, 0) + 1
        super().rewind()

    def _dropped(self, report: Report) -> None:
        self._tell(report.line, report.step, DROPPED)

    def _tell(self, key: tuple[str, str], step: int, word: str) -> None:
        self.outcomes.put(Outcome(key, step, word, self._num_again.pop(key, 0)))


def _nothing(num_bytes: int) -> NoReturn:
    raise MemoryError("a sync's snapshots bring their own memory")
