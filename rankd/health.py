"""What is said of the daemon's health, to probes and people."""

from __future__ import annotations

import time
from asyncio import Event
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rankd.faults import Faults
from rankd.presence import Presence


class Health:
    """`gauges` are read whenever somebody asks."""

    def __init__(
        self,
        stop: Event,
        presence: Presence,
        faults: Faults,
        gauges: Mapping[str, Callable[[], Any]],
        counters: Counter[str],
        processes: Callable[[], list[dict[str, Any]]] = list,
        capacity: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.stalled: str | None = None
        """What stands still, if anything does."""
        self.processes = processes
        """The body of /trainers."""
        self.capacity = capacity
        """The body of /capacity."""
        self._stop = stop
        self._presence = presence
        self._faults = faults
        self._gauges = gauges
        self._counters = counters
        self._started = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """The body of /healthz."""
        return {
            "status": "stopping" if self._stop.is_set() else "degraded" if self._faults else "ok",
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "faults": self._faults.listing(),
            **{name: read() for name, read in self._gauges.items()},
            **self._counters,
        }

    def why_not_ready(self) -> str | None:
        """For /readyz: None while pushes are taken and measured."""
        if self._stop.is_set():
            return "stopping"
        return self.stalled if self._presence.announced else "starting"
