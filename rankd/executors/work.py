"""What executors are handed: a snapshot, as bytes from the wire."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankd.records import Snapshot, Tier
from rankd.weights import Weight

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""The wire's dtype names that carry no scales. A fixed table: a name from the network is never looked up in torch."""


@dataclass(frozen=True, slots=True)
class Work:
    """A snapshot to measure, and in which tier. `partner`: the other factor of the same step, where the snapshot is the
    second of a LoRA pair."""

    snapshot: Snapshot
    tier: Tier = "exact"
    partner: Snapshot | None = None


def weight_of(work: Work, device: torch.device) -> Weight:
    """The work with its tensors on `device`."""
    of, partner = work.snapshot, work.partner
    other = None if partner is None else _tensor(partner, device)
    return Weight(of.run, of.layer, _tensor(of, device), of.wire_dtype, of.source_dtype, of.role, work.tier, other)


def _tensor(snapshot: Snapshot, device: torch.device) -> torch.Tensor:
    """In its own shape and its wire's dtype."""
    flat = torch.frombuffer(snapshot.data, dtype=TORCH_DTYPES[snapshot.wire_dtype])
    return flat.reshape(snapshot.shape).to(device)
