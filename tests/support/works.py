"""Snapshots of tensors, and executors for a moment."""

from __future__ import annotations

from typing import Any

import torch

from rankd.executors import EXECUTORS, Executor, Part, Settings, Work
from rankd.executors.batches import BatchExecutor
from rankd.records import Reading, Snapshot, Tier
from rankd.weights import DEFAULT_SETTINGS

CPU = torch.device("cpu")

MAKERS: dict[str, Any] = {**EXECUTORS, "batches": BatchExecutor}
"""All there are but for the one whose processes take seconds to start; the last takes the CPU for a GPU as well as
another."""
del MAKERS["processes"]


def snapshot(values: torch.Tensor, layer: str = "w", step: int = 1, source_dtype: str = "") -> Snapshot:
    data = values.contiguous().view(torch.uint8).reshape(-1).numpy().copy()
    dtype = str(values.dtype).removeprefix("torch.")
    return Snapshot("r", layer, step, tuple(values.shape), dtype, source_dtype or dtype, data)


def work(values: torch.Tensor, layer: str = "w", tier: Tier = "exact") -> Work:
    return Work(snapshot(values, layer), tier)


def no_fault(name: str, text: str) -> None:
    raise AssertionError(f"{name}: {text}")


def make(name: str, *devices: torch.device, settings: Settings = DEFAULT_SETTINGS) -> Executor:
    executor: Executor = MAKERS[name](devices or (CPU,), no_fault, settings)
    return executor


def measured(name: str, item: Work, *devices: torch.device) -> list[Part]:
    executor = make(name, *devices)
    try:
        return executor.submit(item).result(60)
    finally:
        executor.close()


def untimed(parts: list[Part]) -> list[tuple[str, tuple[int, ...], dict[str, Any]]]:
    """All that was measured but how long it took."""
    fields = [name for name in Reading.__dataclass_fields__ if name != "seconds"]
    return [(part.layer, part.shape, {name: getattr(part.reading, name) for name in fields}) for part in parts]
