"""What executors are handed: something to measure, mostly a snapshot as bytes from the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from rankd.plan.costs import Size
from rankd.records import Snapshot, Tier
from rankd.weights import Settings, Weight, split_of
from rankd_client.wire import SCALE_BYTES, row_elements

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""The wire's dtype names that carry no scales. A fixed table: a name from the network is never looked up in torch."""

SCALED_DTYPES = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}
"""Those that carry one behind each row."""


class Task(Protocol):
    """A weight that can be had on any device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def on(self, device: torch.device) -> Weight: ...


@dataclass(frozen=True, slots=True)
class Work:
    """A snapshot to measure, and in which tier. `partner`: the other factor of the same step, where the snapshot is the
    second of a LoRA pair."""

    snapshot: Snapshot
    tier: Tier = "exact"
    partner: Snapshot | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.snapshot.shape

    @property
    def num_bytes(self) -> int:
        return self.snapshot.data.nbytes + (0 if self.partner is None else self.partner.data.nbytes)

    def size(self, settings: Settings) -> Size:
        """As it is measured, whole."""
        of = self.snapshot
        *experts, rows, cols = split_of(of.layer, of.shape, of.role, settings).whole.shape
        return Size(rows, cols, max(1, math.prod(experts)))

    def on(self, device: torch.device) -> Weight:
        of = self.snapshot
        other = None if self.partner is None else _tensor(self.partner, device)
        return Weight(of.run, of.layer, _tensor(of, device), of.wire_dtype, of.source_dtype, of.role, self.tier, other)


def _tensor(snapshot: Snapshot, device: torch.device) -> torch.Tensor:
    """In its own shape and its wire's dtype, or, where that comes with scales, as float32."""
    if (scaled := SCALED_DTYPES.get(snapshot.wire_dtype)) is not None:
        width = row_elements(snapshot.shape)
        rows = torch.frombuffer(snapshot.data, dtype=torch.uint8).view(-1, width + SCALE_BYTES).to(device)
        values = rows[:, :width].view(scaled).float()
        scales = rows[:, width:].clone(memory_format=torch.contiguous_format).view(torch.float32)  # cloned: aligned
        return values.mul_(scales).view(snapshot.shape)
    flat = torch.frombuffer(snapshot.data, dtype=TORCH_DTYPES[snapshot.wire_dtype])
    return flat.reshape(snapshot.shape).to(device)
