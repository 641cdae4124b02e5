"""Numbers that trainers computed themselves → Measurements, in the order in which their layer's came."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankd.namespaces import namespace_of
from rankd.quota import Tally, half
from rankd.records import CONTRACT_METRICS, METRIC_NAMES, REPORTED, Measurement, Snapshot
from rankd_client.wire import Reported, WireError
from rankd_client.wire import fields as f
from rankd_client.wire.limits import MAX_ELEMENTS

Key = tuple[str, str, str]
"""(run, layer, role)"""

MAX_HELD = 8192
MAX_HELD_OF_RUN = 1024
"""Measurements that wait for what came of their layer before, or to be judged. A client has at most 256 on the way, and
hears of each when it is judged: an honest job never gets here."""

OURS = ("run", "layer", "step", "role", "time", "method", "wire_dtype", "measure_seconds", "summary")
"""Keys that the header and the daemon give, whatever a body says."""

NOT_REPORTED = ("tier", "parts", "part_of", "num_zero_parts", "experts", "split_reason", "lora_reason")
"""Keys that say how a daemon measured, and by which it judges: a layer's parts are remembered by name for good."""

MAX_DTYPE_BYTES = 32


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A measurement that waits; `taken` tells its sender, whose credit comes back, that it does no longer."""

    measurement: Measurement
    taken: Callable[[], None] = lambda: None


class Reports:
    """One line for each (run, layer, role) of which something is reported while a snapshot is on its way to be
    measured, or another report to be judged: a step that overtakes one before it would look like a run that went back.

    Snapshots that are superseded stand in nobody's way. `clock`: seconds since the Unix epoch.
    """

    def __init__(self, counters: Counter[str], clock: Callable[[], float]) -> None:
        self._counters = counters
        self._clock = clock
        self._lines: dict[Key, list[Snapshot | Report]] = {}
        self._ready: deque[Report] = deque()
        self._came = asyncio.Event()
        self._held = Tally()
        self._of_run: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total

    def read(self, run: str, message: Reported) -> Measurement:
        """The measurement that a message is. Raises WireError for one that is none, or for which there is no room."""
        namespace = namespace_of(run)
        is_full = self._held.total >= MAX_HELD or (namespace and self._held.of(namespace) >= half(MAX_HELD))
        if is_full or self._of_run[run] >= MAX_HELD_OF_RUN:
            raise WireError("assembly_full", f"{self._of_run[run]} measurements of this run wait, {len(self)} of all")
        return measurement_of(run, message, self._clock())

    def put(self, item: Snapshot | Report) -> None:
        """A snapshot was taken, or a report of what was read."""
        line = self._lines.setdefault(_key(item), [])
        line.append(item)
        if isinstance(item, Report):
            self._counters["num_reported"] += 1
            self._count(item, 1)
        if len(line) == 1:
            self._look(line)

    def over(self, item: Snapshot | Report) -> None:
        """It is judged, or never will be: what waited for it need not any more."""
        key = _key(item)
        line = self._lines[key]
        at = next(at for at, other in enumerate(line) if other is item)
        del line[at]
        if isinstance(item, Report):
            self._count(item, -1)
        if not line:
            del self._lines[key]
        elif at == 0:
            self._look(line)

    async def next(self) -> Report:
        """The next one that nothing is before; waits for one. Call `over` with it afterwards."""
        while not self._ready:
            self._came.clear()
            await self._came.wait()
        return self._ready.popleft()

    def _look(self, line: list[Snapshot | Report]) -> None:
        """What comes first in `line` has just become so."""
        first = line[0]
        if isinstance(first, Report):
            self._ready.append(first)
            self._came.set()

    def _count(self, report: Report, sign: int) -> None:
        run = report.measurement.run
        self._held.add(run, sign)
        self._of_run[run] += sign
        if not self._of_run[run]:
            del self._of_run[run]


def measurement_of(run: str, message: Reported, time: float) -> Measurement:
    """What a row of the history would be. The trainer may leave out whatever it does not know: metrics are null then,
    and the shape 0 × 0. Raises WireError for what no row can have."""
    told = {key: value for key, value in message.body.items() if key not in OURS and key not in NOT_REPORTED}
    if not any(name in told for name in METRIC_NAMES) and told.get("finite", True) is not False:
        raise WireError("missing_field", f"none of {', '.join(METRIC_NAMES)}")
    if "shape" in told:
        f.shape("shape", told["shape"])
        told |= {"rows": told["shape"][0], "cols": math.prod(told["shape"][1:])}
    _check_integers(told)
    size = f.integer(0, MAX_ELEMENTS - 1)
    rows, cols = f.take(told, "rows", size, 0), f.take(told, "cols", size, 0)
    f.take(told, "source_dtype", f.text(MAX_DTYPE_BYTES), "")
    ours = {"run": run, "layer": message.layer, "step": message.step, "role": message.role, "time": time}
    nothing = dict.fromkeys(CONTRACT_METRICS)
    try:
        return Measurement.from_json({**nothing, **told, "rows": rows, "cols": cols, **ours, "method": REPORTED})
    except ValueError as error:
        raise WireError("bad_field", str(error)) from None


def _check_integers(value: Any) -> None:
    """msgpack has integers up to 2^64 - 1: the history would be taken for damaged where one beyond 2^63 - 1 stands."""
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            _check_integers(child)
    elif isinstance(value, int) and value >= 1 << 63:
        raise WireError("bad_field", f"{value}; expected integers below 2^63")


def _key(item: Snapshot | Report) -> Key:
    if isinstance(item, Snapshot):
        return item.key
    of = item.measurement
    return of.run, of.layer, of.role
