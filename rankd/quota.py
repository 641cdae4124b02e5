"""What the runs of a namespace may take together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """None is no limit beyond the daemon's own."""

    max_runs: int | None = None
    """Runs known at a time."""

    max_bytes: int | None = None
    """Of snapshots in memory, those being received and those waiting to be measured counted each for itself."""

    max_disk_bytes: int | None = None
    """Of its measurements in the history; the oldest go."""


NO_QUOTA = Quota()


def namespace_of(run: str) -> str:
    """The namespace of a run's full name: ns of `@ns/run`, "" of any other."""
    return run[1:].partition("/")[0] if run.startswith("@") and "/" in run else ""
