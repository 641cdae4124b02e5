"""Casts to the wire's dtypes and back, as the client makes them."""

from __future__ import annotations

import torch

CASTS = ("float16", "bfloat16", "int8", "float8_e4m3fn", "float8_e5m2")


def rounded(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """float32 `weight` with what a cast to `dtype` leaves of it, scaled per row where the dtype's range is small."""
    if dtype in ("float32", "float16", "bfloat16"):
        return weight.to(getattr(torch, dtype)).float()
    largest = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}[dtype]
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / largest
    scaled = weight / scales
    return (scaled.round() if dtype == "int8" else scaled.to(getattr(torch, dtype)).float()) * scales
