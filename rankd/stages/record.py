"""Numbers what will be published and remembers it: the current state, and the newest events for who missed some.

The history on disk comes with the durability work; with `data`, rows are appended as JSON lines meanwhile.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from rankd.config import ConfigError, Limits
from rankd.records import Alert, Measurement
from rankd_client.wire import Event

log = logging.getLogger("rankd.record")
T = TypeVar("T")

MAX_STATE_ALERTS_BYTES = 2 << 20
MAX_STATE_LIST_BYTES = 768 << 10
"""Of a state reply, which may have 4 MiB: names are the peers', up to 1 kB each. Whoever watches more than fits reads
`truncated` and asks run by run."""

MAX_RESUME_EVENTS = 1000


MAX_FIRING_TOLD = 1000
"""Firing alerts told to a trainer that comes back: as many as its client keeps."""


class Recent:
    """The newest `max_events` of one kind, by run: numbers count from 1 per run."""

    def __init__(self, kind: str, stream_id: str, max_events: int) -> None:
        self.kind = kind
        self.stream_id = stream_id
        self.max_events = max_events
        self.numbers: dict[str, int] = {}
        self._events: dict[str, deque[Event]] = {}
        self._order: deque[str] = deque()

    def next_number(self, run: str) -> int:
        self.numbers[run] = self.numbers.get(run, 0) + 1
        return self.numbers[run]

    def add(self, run: str, seq: int, body: Mapping[str, Any]) -> Event:
        event = Event(self.kind, run, self.stream_id, seq, body)
        self._events.setdefault(run, deque()).append(event)
        self._order.append(run)
        if len(self._order) > self.max_events:
            self._events[self._order.popleft()].popleft()
        return event

    def since(self, run: str, from_seq: int) -> tuple[list[Event], int, int]:
        """At most MAX_RESUME_EVENTS events from number `from_seq` on, the oldest number kept, and the newest given."""
        events = self._events.get(run, deque())
        first = events[0].seq if events else self.numbers.get(run, 0) + 1
        skip = max(0, from_seq - first)
        return list(islice(events, skip, skip + MAX_RESUME_EVENTS)), first, self.numbers.get(run, 0)


class Record:
    """Takes each measurement with its alerts, numbers both, and answers what is the state now."""

    def __init__(
        self,
        stream_id: str,
        limits: Limits,
        clock: Callable[[], float],
        counters: Counter[str],
        data: Path | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.clock = clock
        self.counters = counters
        self.recent = {
            "alert": Recent("alert", stream_id, limits.max_recent_alerts),
            "measurement": Recent("measurement", stream_id, limits.max_recent_measurements),
        }
        self._firing: dict[str, Alert] = {}
        self._runs: dict[str, dict[str, Any]] = {}
        self._files = {kind: _open_log(data, kind) for kind in self.recent}

    def __call__(self, measurement: Measurement, alerts: Iterable[Alert]) -> list[Event]:
        """The events to publish: the measurement, then its alerts."""
        run = measurement.run
        known = self._runs.setdefault(run, {"run": run, "step": None, "num_measurements": 0, "layers": set()})
        known["step"] = measurement.step
        known["num_measurements"] += 1
        known["layers"].add(measurement.layer)
        self.counters["num_measurements"] += 1
        return [self._add("measurement", run, measurement.to_json()), *(self._record_alert(alert) for alert in alerts)]

    def state(self, run: str | None = None) -> dict[str, Any]:
        """What a late joiner needs: newest numbers, firing alerts, and the runs; of one run or of all."""
        firing = (alert.to_json() for alert in reversed(self._firing.values()) if run in (None, alert.run))
        alerts, all_alerts = _fitting(firing, MAX_STATE_ALERTS_BYTES)
        numbers, all_numbers = _fitting(self._numbers(run), MAX_STATE_LIST_BYTES)
        known = (self._runs[name] for name in reversed(self._runs) if run in (None, name))
        runs, all_runs = _fitting(({**row, "layers": len(row["layers"])} for row in known), MAX_STATE_LIST_BYTES)
        return {
            "numbers": numbers,
            "alerts": alerts,
            "truncated": not (all_alerts and all_numbers and all_runs),
            "runs": runs,
            "counters": dict(self.counters),
        }

    def _numbers(self, run: str | None) -> Iterator[list[Any]]:
        for kind, recent in self.recent.items():
            for name in reversed(recent.numbers):
                if run in (None, name):
                    yield [kind, name, recent.numbers[name]]

    def firing(self, run: str) -> list[dict[str, Any]]:
        """The newest alerts that are on in `run`, oldest first, as they were published."""
        newest = [alert for alert in reversed(self._firing.values()) if alert.run == run][:MAX_FIRING_TOLD]
        return [alert.to_json() for alert in reversed(newest)]

    def since(self, kind: str, run: str, from_seq: int) -> tuple[list[Event], int, int]:
        """Events to resume from; see Recent.since."""
        return self.recent[kind].since(run, from_seq)

    def forget(self, run: str) -> None:
        """Give up the memory of a run long silent. Its numbers stay, so that they never go back."""
        self._runs.pop(run, None)
        for alert_id in [alert_id for alert_id, alert in self._firing.items() if alert.run == run]:
            del self._firing[alert_id]

    def close(self) -> None:
        for file in self._files.values():
            if file is not None:
                file.close()

    def _record_alert(self, alert: Alert) -> Event:
        recent = self.recent["alert"]
        published = alert.published(self.stream_id, recent.next_number(alert.run), self.clock())
        if published.state == "firing":
            self._firing[published.alert_id] = published
        else:
            self._firing.pop(published.alert_id, None)
        self.counters["num_alerts"] += 1
        self._write("alert", published.to_json())
        return recent.add(alert.run, published.seq, published.to_json())

    def _add(self, kind: str, run: str, body: dict[str, Any]) -> Event:
        self._write(kind, body)
        return self.recent[kind].add(run, self.recent[kind].next_number(run), body)

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        """One JSON line, written before the acknowledgement. A full disk costs the line, never the alert."""
        file = self._files[kind]
        if file is None:
            return
        try:
            _append(file, json.dumps(row, allow_nan=False).encode() + b"\n")
        except OSError as error:
            self.counters["dropped_rows"] += 1
            if self.counters["dropped_rows"] in (1, 1000):
                log.error("cannot write %s: %s; alerts go on without it", file.name, error)


def _fitting(newest_first: Iterable[T], max_bytes: int) -> tuple[list[T], bool]:
    """The newest rows that fit `max_bytes` of msgpack, oldest first, and whether that is all."""
    kept: list[T] = []
    for row in newest_first:
        max_bytes -= len(msgpack.packb(row))
        if max_bytes < 0:
            return kept[::-1], False
        kept.append(row)
    return kept[::-1], True


def _append(file: FileIO, line: bytes) -> None:
    """Write all of `line` or nothing of it: half a line would spoil the next one too. Raises OSError."""
    num_written = file.write(line)
    if num_written != len(line):
        file.truncate(file.tell() - num_written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _open_log(data: Path | None, kind: str) -> FileIO | None:
    if data is None:
        return None
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (data / f"{kind}s.jsonl").open("ab", buffering=0)
    except OSError as error:
        raise ConfigError(f"data={str(data)!r}: expected a directory to write to; {error.strerror}") from None
