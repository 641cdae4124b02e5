"""What is said of the daemon's health, to probes and people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankd.daemon import Daemon


def describe(daemon: Daemon) -> dict[str, Any]:
    """The body of /healthz."""
    return {
        "status": "stopping" if daemon.stop.is_set() else "degraded" if daemon.faults else "ok",
        "uptime_seconds": round(time.monotonic() - daemon.started, 3),
        "stream_id": daemon.history.streams.stream_id,
        "device": str(daemon.executor.device),
        "faults": daemon.faults.listing(),
        "num_waiting": len(daemon.mailbox),
        "waiting_bytes": daemon.mailbox.num_bytes,
        "assembly_bytes": daemon.assemble.num_bytes,
        "num_unwritten": daemon.record.num_pending,
        **daemon.counters,
    }


def why_not_ready(daemon: Daemon) -> str | None:
    """For /readyz: None while pushes are taken and measured."""
    if daemon.stop.is_set():
        return "stopping"
    return daemon.stalled if daemon.presence.announced else "starting"
