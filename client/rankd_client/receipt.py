"""What a push tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PushReceipt:
    """What one push did. `skipped` maps a layer to the reason why it was not queued; `wire_bytes` counts what this push
    copied, `device_bytes` the device memory that is held for pushes and the largest copy that this one decoded,
    `num_replaced` and `num_dropped` the older unsent snapshots that it replaced, and that had to make room."""

    step: int | None
    num_queued: int = 0
    num_replaced: int = 0
    num_dropped: int = 0
    skipped: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    wire_bytes: int = 0
    device_bytes: int = 0
    blocked_seconds: float = 0.0


class Passes:
    """Receipts of pushes that leave everything out. There is one at each of many steps, so nothing is listed anew."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._skipped: dict[str, Mapping[str, str]] = {}
        """By the reason."""

    def watching(self, names: tuple[str, ...]) -> None:
        """The layers are others than before."""
        self._names = names
        self._skipped = {}

    def receipt(self, step: int, reason: str) -> PushReceipt:
        if reason not in self._skipped:
            self._skipped[reason] = MappingProxyType(dict.fromkeys(self._names, reason))
        return PushReceipt(step, skipped=self._skipped[reason])
