"""A copy that is whole when it returns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rankd_client.arena import Region
from rankd_client.copies.halves import is_small
from rankd_client.copies.memory import bytes_of, torch_dtype
from rankd_client.copies.scaled import copy_scaled
from rankd_client.watch import Watched
from rankd_client.wire import DTYPES, SCALE_BYTES, row_elements

if TYPE_CHECKING:
    import torch


def copy(item: Watched, region: Region) -> str:
    """Copy a watched tensor into `region`, row-major. Returns its dtype there.

    float16 holds nothing beyond 65504 and is coarse below 8e-6: a layer that would overflow, or that is small (see
    halves), goes as bfloat16 (as many bytes, float32's range) rather than raise a false alarm. NaN and Inf travel as
    they are.
    """
    dtype = item.dtype
    source = item.values()
    if DTYPES[dtype].scaled:
        copy_scaled(dtype, source, bytes_of(region).view(-1, row_elements(item.shape) + SCALE_BYTES))
        return dtype
    _copy_as(dtype, source, region)
    if dtype == "float16" and item.source_dtype != "float16":
        low, high = (float(value) for value in _view(dtype, source.shape, region).aminmax())
        if math.isinf(low) or math.isinf(high) or bool(is_small(source)):
            dtype = "bfloat16"
            _copy_as(dtype, source, region)
    return dtype


def _copy_as(dtype: str, source: torch.Tensor, region: Region) -> None:
    target = _view(dtype, source.shape, region)
    # On an accelerator (CUDA has a way of its own) the cast belongs there: half the bytes cross the bus.
    target.copy_(source if source.device.type == "cpu" else source.to(target.dtype).contiguous())


def _view(dtype: str, shape: tuple[int, ...], region: Region) -> torch.Tensor:
    return bytes_of(region).view(torch_dtype(dtype)).view(shape)
