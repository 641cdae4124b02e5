"""What a push took, and what there is to say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rankd_client.receipt import PushReceipt
from rankd_client.watch import Watched


@dataclass(frozen=True, slots=True)
class Taken:
    """`names` are those of the weights among the `items`, which were copied; `skipped` has the reasons of the others,
    and `error` the first fault that a single one met."""

    items: Sequence[Watched]
    names: Sequence[str]
    skipped: Mapping[str, str]
    wire_bytes: int
    decoded_bytes: int
    error: Exception | None = None

    @classmethod
    def of(cls, items: Sequence[Watched], skipped: Mapping[str, str], error: Exception | None) -> Taken:
        names = tuple(item.name for item in items if item.role == "weight")
        wire_bytes = sum(item.num_bytes for item in items)
        return cls(items, names, skipped, wire_bytes, max((item.decoded_bytes for item in items), default=0), error)

    def receipt(self, step: int, num_replaced: int, num_dropped: int, device_bytes: int) -> PushReceipt:
        """`device_bytes` of memory are held on GPUs, whatever was copied."""
        return PushReceipt(
            step,
            num_queued=len(self.items),
            num_replaced=num_replaced,
            num_dropped=num_dropped,
            skipped=MappingProxyType(self.skipped),
            wire_bytes=self.wire_bytes,
            device_bytes=device_bytes + self.decoded_bytes,
        )

    @property
    def repeatable(self) -> bool:
        """Whether the same may go again without a look at it, where the model is the same: none has to be decoded,
        which takes a wait, and each has something to send."""
        return all(item.decode is None and item.num_bytes for item in self.items)
