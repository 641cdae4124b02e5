"""What tests of a client share whose daemon is not there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rankd_client import Client

Make = Callable[..., Client]


def model_of(num_layers: int = 4, size: int = 8) -> dict[str, torch.Tensor]:
    return {f"h.{i}.weight": torch.full((size, size), float(i + 1)) for i in range(num_layers)}
