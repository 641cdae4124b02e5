"""What is handed to the history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rankd.records import Alert, Measurement


@dataclass(frozen=True, slots=True)
class Entry:
    """A measurement with what came of it: in the history whole or not at all.

    `n` numbers the measurements of its run, and the alerts carry their number among the alert events of the run; both
    grow from one entry of a run to the next.
    """

    n: int
    measurement: Measurement
    alerts: tuple[tuple[int, Alert], ...] = ()
    judge: bytes | None = None
    """State of the layer's detectors after this measurement, where it is to be kept."""
    more: bool = False
    """Whether the next entry is of the same snapshot: both come into one commit, since a snapshot is not sent again
    once its last row is on disk."""


@dataclass(frozen=True, slots=True)
class AlertEntry:
    """An alert that no measurement brought. `n` numbers the alert events of its run."""

    n: int
    alert: Alert


AnyEntry = Entry | AlertEntry


def oldest_without_alerts(entries: Sequence[AnyEntry], num: int) -> set[int]:
    """The places of `num` of the entries or a few more: the oldest, those without alerts first, and with one of a
    snapshot all of it."""
    going = set[int]()
    for group in sorted(_snapshots(entries), key=lambda group: any(_has_alert(entries[at]) for at in group)):
        if len(going) >= num:
            break
        going.update(group)
    return going


def _snapshots(entries: Sequence[AnyEntry]) -> Iterator[range]:
    """The places of each snapshot's entries; an alert that no measurement brought is one by itself."""
    start = 0
    for at, entry in enumerate(entries):
        if not (isinstance(entry, Entry) and entry.more):
            yield range(start, at + 1)
            start = at + 1


def _has_alert(entry: AnyEntry) -> bool:
    return isinstance(entry, AlertEntry) or bool(entry.alerts)
