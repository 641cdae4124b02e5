"""What a client tells in its heartbeats about its pushes; from the network: what is wrong in it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rankd_client.wire import MAX_STEP

MAX_KEYS = 64
"""Three times what there is now. A map with more tells nothing."""

MAX_SECONDS = 1e9
MAX_EVERY_STEPS = 1 << 40
PATHS = ("memfd", "zeromq")


@dataclass(frozen=True, slots=True)
class Stats:
    """Of one process, since its first push; None where it did not tell. docs/operations.md has the meanings."""

    step: int | None = None
    """The newest that it pushed."""
    num_pushes: int | None = None
    num_due: int | None = None
    num_skipped: int | None = None
    blocked_seconds: float | None = None
    elapsed_seconds: float | None = None
    step_seconds: float | None = None
    push_seconds: float | None = None
    """How long a due push keeps the training thread, smoothed."""
    share: float | None = None
    """Blocked of elapsed."""
    max_overhead: float | None = None
    every_steps: int | None = None
    """The interval in force: the longer of its own and the plan's."""
    wire_bytes: int | None = None
    num_dropped: int | None = None
    num_replaced: int | None = None
    num_layers: int | None = None
    oldest_steps: int | None = None
    """How many steps ago the stalest layer was pushed last."""
    num_never: int | None = None
    path: str | None = None
    device_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


NO_STATS = Stats()

_MOST_SECONDS = dict.fromkeys(("blocked_seconds", "elapsed_seconds", "step_seconds", "push_seconds"), MAX_SECONDS)
_MOST_NUMBER: dict[str, float] = {**_MOST_SECONDS, "share": 1e6, "max_overhead": 1e6}
_COUNTS = ("num_pushes", "num_due", "num_skipped", "num_dropped", "num_replaced", "num_layers", "num_never")
_MOST_INTEGER = dict.fromkeys((*_COUNTS, "step", "wire_bytes", "oldest_steps", "device_bytes"), MAX_STEP)
_MOST_INTEGER["every_steps"] = MAX_EVERY_STEPS


def read_stats(told: Mapping[str, Any]) -> tuple[Stats, int]:
    """What can be used of `told`, and how many of its values cannot. Keys that are unknown are a newer client's."""
    if len(told) > MAX_KEYS:
        return NO_STATS, len(told)
    good: dict[str, Any] = {}
    num_bad = 0
    for key, value in told.items():
        if key not in Stats.__dataclass_fields__ or value is None:
            continue
        if _fits(key, value):
            good[key] = float(value) if key in _MOST_NUMBER else value
        else:
            num_bad += 1
    return Stats(**good), num_bad


def _fits(key: str, value: Any) -> bool:
    if key == "path":
        return isinstance(value, str) and value in PATHS
    if key in _MOST_INTEGER:
        return type(value) is int and 0 <= value <= _MOST_INTEGER[key]
    return type(value) in (int, float) and 0 <= value <= _MOST_NUMBER[key]  # which NaN is not
