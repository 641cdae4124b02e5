"""Numbers that a trainer computed, on their way to the daemon. Unlike snapshots each step counts: first in, first out.

unsent ──sent──▶ awaiting (not recorded yet) ──recorded──▶ gone
   ▲                │
   └──── rewind ────┘   a new connection: all of them again, in their order
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import msgpack

from rankd_client.returns import Returns
from rankd_client.wire import Reported

MAX_BYTES = 4 << 20
"""Of bodies, with OVERHEAD_BYTES for each: 10,000 measurements, or 50 steps of 200 layers, while nobody takes them."""

OVERHEAD_BYTES = 256

MAX_UNDER_WAY = 256
"""Sent, and not yet taken by the daemon. It gives credit back when it has judged one, and takes 1,024 of a run."""

MAX_LINES = 16_384
"""Layers of which the step is known that was reported last: as many as a daemon takes of a run."""

Name = tuple[str, str, int]
"""(layer, role, step)"""


@dataclass(slots=True, eq=False)
class Report:
    """`body` is packed. `order`: its place among all that this process has to send. `is_return`: its step is no later
    one of its layer, as far as this process knows; sent once more it is one still, while others are `again`.
    `num_returns`: how often its layer had gone back."""

    layer: str
    role: str
    step: int
    body: bytes
    order: int
    is_return: bool
    again: bool = False
    under_way: bool = False
    num_returns: int = 0

    @property
    def name(self) -> Name:
        return self.layer, self.role, self.step

    @property
    def line(self) -> tuple[str, str]:
        return self.layer, self.role

    @property
    def num_bytes(self) -> int:
        return len(self.body) + OVERHEAD_BYTES

    def message(self) -> Reported:
        return Reported(self.layer, self.step, msgpack.unpackb(self.body), self.role, self.again, len(self.body))


class Reports:
    """Within `max_bytes`; the oldest go, counted in `num_dropped`. `changed` is the outbox's, and locks all this."""

    def __init__(
        self,
        changed: threading.Condition,
        orders: Iterator[int] | None = None,
        is_behind: Callable[[tuple[str, str], int], bool] = lambda line, order: False,
        max_bytes: int = MAX_BYTES,
        on_dropped: Callable[[Report], None] = lambda report: None,
    ) -> None:
        """`is_behind`: whether a snapshot of the same (layer, role) came before, and is not dealt with. `on_dropped`
        is called under the lock."""
        self.num_dropped = 0
        self._max_bytes = max_bytes
        self._on_dropped = on_dropped
        self._changed = changed
        self._orders = count() if orders is None else orders
        self._is_behind = is_behind
        self._unsent: deque[Report] = deque()
        self._awaiting: deque[Report] = deque()
        self._num_bytes = 0
        self._num_under_way = 0
        self._returns = Returns()
        self._last: OrderedDict[tuple[str, str], tuple[int, bool]] = OrderedDict()
        """Of each (layer, role), the step that was reported last, and whether the next is a return whatever its step:
        the daemon may not have heard of this one."""
        self._lines: dict[tuple[str, str], deque[Report]] = {}
        """What is unsent or awaited of each (layer, role)."""

    # The training thread's side ------------------------------------------------------------------------------------

    def put(self, layer: str, role: str, step: int, body: Mapping[str, Any]) -> bool:
        """Take one; False if the one before of its layer and role was of this step, whatever became of that: a daemon
        would take it for the same. Raises what packing raises."""
        packed: bytes = msgpack.packb(body)
        with self._changed:
            line = (layer, role)
            last_step, is_return = self._last.get(line, (-1, True))
            if step == last_step:
                return False
            self._last[line] = step, False
            self._last.move_to_end(line)
            if len(self._last) > MAX_LINES:
                self._last.popitem(last=False)
            report = Report(layer, role, step, packed, next(self._orders), is_return or step < last_step)
            report.num_returns = self._returns.count(line, step)
            self._unsent.append(report)
            self._lines.setdefault(line, deque()).append(report)
            self._num_bytes += report.num_bytes
            while self._num_bytes > self._max_bytes:
                self._drop_oldest()
            return True

    # The outlet's side ---------------------------------------------------------------------------------------------

    def next(self) -> Report | None:
        """The next to be sent, if one may be; call `sent` once it is."""
        with self._changed:
            first = self._unsent[0] if self._unsent and self._num_under_way < MAX_UNDER_WAY else None
            if first is None or self._is_behind(first.line, first.order) or self._has_namesake_before(first):
                return None
            return first

    def come_before(self, line: tuple[str, str], order: int) -> bool:
        """Whether one of this (layer, role) came before, and is not dealt with."""
        with self._changed:
            waiting = self._lines.get(line)
            return waiting is not None and waiting[0].order < order

    def sent(self, report: Report) -> None:
        with self._changed:
            if self._unsent and self._unsent[0] is report:  # else it was dropped meanwhile
                self._awaiting.append(self._unsent.popleft())
                report.under_way = True
                self._num_under_way += 1

    def received(self, name: Name) -> bool:
        """The daemon has taken it; False if none of that name is under way."""
        with self._changed:
            found = next((report for report in self._awaiting if report.under_way and report.name == name), None)
            if found is not None:
                self._land(found)
            return found is not None

    def under_way(self) -> list[Name]:
        """Sent on this connection, and not judged yet."""
        with self._changed:
            return [report.name for report in self._awaiting if report.under_way] if self._num_under_way else []

    def settle(self, name: Name) -> bool:
        """It is recorded, or was refused for good; False if none of that name is awaited."""
        with self._changed:
            for at, report in enumerate(self._awaiting):
                if report.name == name:
                    del self._awaiting[at]
                    self._forget(report)
                    self._changed.notify_all()
                    return True
            return False

    def rewind(self) -> None:
        """A new connection: whatever is not recorded goes once more, and says so: the daemon may have it, and newer
        ones of its layer. Not so a return that it may not have, nor what came after that."""
        with self._changed:
            returned: set[tuple[str, str]] = set()
            for report in self._awaiting:
                self._land(report)
                if report.is_return:
                    returned.add(report.line)
                report.again = report.line not in returned
            self._unsent.extendleft(reversed(self._awaiting))
            self._awaiting.clear()

    def give_up(self) -> None:
        """This daemon takes none."""
        with self._changed:
            while self._unsent or self._awaiting:
                self._drop_oldest()
            self._changed.notify_all()

    # Both ----------------------------------------------------------------------------------------------------------

    @property
    def num_unsent(self) -> int:
        return len(self._unsent)

    @property
    def settled(self) -> bool:
        return not self._unsent and not self._awaiting

    # Under the lock ------------------------------------------------------------------------------------------------

    def _drop_oldest(self) -> None:
        waiting = self._awaiting or self._unsent
        report = waiting.popleft()
        self.num_dropped += 1
        self._on_dropped(report)
        self._forget(report)
        if report.is_return:  # the next one of its layer is it now
            if (later := self._lines.get(report.line)) is not None:
                later[0].is_return = True
            elif (last := self._last.get(report.line)) is not None:
                self._last[report.line] = last[0], True

    def _has_namesake_before(self, report: Report) -> bool:
        """Whether its layer was at its step before it went back, and that is not dealt with: an answer would be to
        both."""
        line = self._lines[report.line]
        if line[0].num_returns == report.num_returns:  # steps went up since
            return False
        return any(other.step == report.step for other in takewhile(lambda other: other is not report, line))

    def _forget(self, report: Report) -> None:
        self._land(report)
        self._num_bytes -= report.num_bytes
        line = self._lines[report.line]
        line.remove(report)
        if not line:
            del self._lines[report.line]

    def _land(self, report: Report) -> None:
        self._num_under_way -= report.under_way
        report.under_way = False
