"""Rows with a scale: to bytes, and back by the plain rule of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rankd_client.wire import SCALE_BYTES, row_elements

SCALED = ("int8", "float8_e4m3fn", "float8_e5m2")
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def packed(codes: Sequence[Sequence[int]], scales: Sequence[float]) -> bytes:
    """Rows of element codes 0 to 255, each with its scale behind it."""
    rows = zip(codes, np.array(scales, np.float32), strict=True)
    return b"".join(bytes(row) + scale.tobytes() for row, scale in rows)


def unpacked(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """float32, in its shape."""
    width = row_elements(shape)
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, width + SCALE_BYTES)
    values = [row[:width].view(getattr(torch, dtype)).float() * row[width:].clone().view(torch.float32) for row in rows]
    return torch.stack(values).view(shape)
