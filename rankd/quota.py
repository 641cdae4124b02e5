"""What the runs of a namespace may take together, and what they take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankd.namespaces import namespace_of

if TYPE_CHECKING:
    from rankd.config import Limits


@dataclass(frozen=True, slots=True)
class Quota:
    """None is no limit beyond the daemon's own."""

    max_runs: int | None = None
    """Runs known at a time."""

    max_bytes: int | None = None
    """Of snapshots in memory, those being received and those waiting to be measured counted each for itself."""

    max_disk_bytes: int | None = None
    """Of its measurements in the history, with their spectra and kinds, and of its alerts; the oldest go."""


NO_QUOTA = Quota()


def half(number: int) -> int:
    """Of what there is room for, what a namespace with a name may have where nothing else is said: no key alone keeps
    the others out."""
    return max(1, number // 2)


def share(quota: Quota, limits: Limits) -> Quota:
    """Where `quota` says nothing, half of what the daemon has room for."""
    max_bytes = max(limits.max_layer_bytes, half(limits.max_assembly_bytes))
    return Quota(
        half(limits.max_runs) if quota.max_runs is None else quota.max_runs,
        max_bytes if quota.max_bytes is None else quota.max_bytes,
        quota.max_disk_bytes,
    )


class Tally:
    """How much of one thing there is: `total`, and of each namespace."""

    def __init__(self) -> None:
        self.total = 0
        self._by_namespace: Counter[str] = Counter()

    def of(self, namespace: str) -> int:
        return self._by_namespace[namespace]

    def add(self, run: str, number: int) -> None:
        """`number` more (or, negative, fewer) are of this run."""
        self.total += number
        namespace = namespace_of(run)
        self._by_namespace[namespace] += number
        if not self._by_namespace[namespace]:
            del self._by_namespace[namespace]
