"""What is handed to the history."""

from __future__ import annotations

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
    """Whether the next entry is of the same snapshot: both come into one commit, since a snapshot is sent again until all
    that came of it is on disk."""


@dataclass(frozen=True, slots=True)
class AlertEntry:
    """An alert that no measurement brought. `n` numbers the alert events of its run."""

    n: int
    alert: Alert
