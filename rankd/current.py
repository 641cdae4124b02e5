"""What is so now: the alerts that fire, the runs, and the newest events for who missed some."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar

import msgpack

from rankd.config import Limits
from rankd.records import Alert, Measurement
from rankd.streams import Streams
from rankd_client.wire import Event

T = TypeVar("T")

MAX_STATE_ALERTS_BYTES = 2 << 20
MAX_STATE_LIST_BYTES = 768 << 10
"""Of a state reply, which may have 4 MiB: names are the peers', up to 1 kB each. Whoever watches more than fits reads
`truncated` and asks run by run."""

MAX_FIRING_TOLD = 1000
"""Firing alerts told to a trainer that comes back: as many as its client keeps."""


class Recent:
    """The newest `max_events` of one kind of the current stream, by run."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self._events: dict[str, deque[Event]] = {}
        self._order: deque[str] = deque()

    def add(self, event: Event) -> None:
        self._events.setdefault(event.run, deque()).append(event)
        self._order.append(event.run)
        if len(self._order) > self.max_events:
            run = self._order.popleft()
            self._events[run].popleft()
            if not self._events[run]:
                del self._events[run]

    def clear(self) -> None:
        self._events.clear()
        self._order.clear()

    def first(self, run: str) -> int | None:
        """The oldest number held."""
        events = self._events.get(run)
        return events[0].seq if events else None

    def since(self, run: str, from_seq: int, max_events: int) -> list[Event]:
        events = self._events.get(run, deque())
        skip = max(0, from_seq - events[0].seq) if events else 0
        return list(islice(events, skip, skip + max_events))


class Current:
    """Fed with everything that is published; answers from memory."""

    def __init__(self, streams: Streams, limits: Limits, counters: Counter[str]) -> None:
        self.streams = streams
        self.counters = counters
        self.recent = {
            "alert": Recent(limits.max_recent_alerts),
            "measurement": Recent(limits.max_recent_measurements),
        }
        self._firing: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, dict[str, Any]] = {}
        self._layers: dict[str, set[str]] = {}

    def load_run(self, run: str, step: int | None, num_measurements: int, num_layers: int) -> None:
        """What the history says of a run."""
        self._runs[run] = {"run": run, "step": step, "num_measurements": num_measurements, "layers": num_layers}

    def load_firing(self, alert: dict[str, Any]) -> None:
        self._firing[alert["alert_id"]] = alert

    def measured(self, measurement: Measurement, n: int) -> Event:
        """The event of a measurement that is being published."""
        run = measurement.run
        known = self._runs.pop(run, {"run": run, "layers": 0})
        known |= {"step": measurement.step, "num_measurements": n}
        layers = self._layers.setdefault(run, set())
        layers.add(measurement.layer)
        known["layers"] = max(known["layers"], len(layers))  # of a run from before the start, new ones show late
        self._runs[run] = known  # the newest last
        return self._event("measurement", run, n, measurement.to_json())

    def raised(self, alert: Alert, n: int) -> Event:
        """The event of an alert that is being published."""
        seq = self.streams.seq(("alert", alert.run), n)
        body = alert.published(self.streams.stream_id, seq, alert.time).to_json()
        self._firing.pop(alert.alert_id, None)
        if alert.state == "firing":
            self._firing[alert.alert_id] = body
        return self._event("alert", alert.run, n, body)

    def begin_stream(self) -> None:
        """The numbers begin anew; what was told in the former stream is its own."""
        for recent in self.recent.values():
            recent.clear()

    def state(self, run: str | None, covers: Callable[[str], bool]) -> dict[str, Any]:
        """What a late joiner needs: newest numbers, firing alerts, and the runs; of one run, or of all that `covers`
        lets it see."""

        def wanted(name: str) -> bool:
            return run in (None, name) and covers(name)

        alerts, all_alerts = _fitting(
            (alert for alert in reversed(self._firing.values()) if wanted(alert["run"])), MAX_STATE_ALERTS_BYTES
        )
        topics = (topic for topic in self.streams.topics() if wanted(topic[1]))
        numbers, all_numbers = _fitting(
            ([*topic, self.streams.newest_seq(topic)] for topic in topics), MAX_STATE_LIST_BYTES
        )
        known = (row for name, row in reversed(self._runs.items()) if wanted(name))
        runs, all_runs = _fitting(known, MAX_STATE_LIST_BYTES)
        truncated = not (all_alerts and all_numbers and all_runs)
        return {"numbers": numbers, "alerts": alerts, "truncated": truncated, "runs": runs}

    def firing(self, run: str) -> list[dict[str, Any]]:
        """The newest alerts that are on in `run`, oldest first, as they were published."""
        newest = islice((alert for alert in reversed(self._firing.values()) if alert["run"] == run), MAX_FIRING_TOLD)
        return list(newest)[::-1]

    def all_firing(self) -> list[dict[str, Any]]:
        """The alerts that are on in any run, as they were published."""
        return list(self._firing.values())

    def forget(self, run: str) -> None:
        """Give up the memory of a run long silent. Its numbers stay, so that they never go back."""
        self._runs.pop(run, None)
        self._layers.pop(run, None)
        for alert_id in [alert_id for alert_id, alert in self._firing.items() if alert["run"] == run]:
            del self._firing[alert_id]

    def _event(self, kind: str, run: str, n: int, body: Mapping[str, Any]) -> Event:
        self.streams.tell((kind, run), n)
        event = Event(kind, run, self.streams.stream_id, self.streams.seq((kind, run), n), body)
        self.recent[kind].add(event)
        return event


def _fitting(newest_first: Iterable[T], max_bytes: int) -> tuple[list[T], bool]:
    """The newest rows that fit `max_bytes` of msgpack, oldest first, and whether that is all."""
    kept: list[T] = []
    for row in newest_first:
        max_bytes -= len(msgpack.packb(row))
        if max_bytes < 0:
            return kept[::-1], False
        kept.append(row)
    return kept[::-1], True
