"""Why a tensor is not one to watch."""

from __future__ import annotations

import math
from typing import Any

from rankd_client.wire import MAX_LAYER_NAME_BYTES
from rankd_client.wire.limits import MAX_DIMENSIONS, MAX_ELEMENTS

SOURCE_DTYPES = ("float64", "float32", "float16", "bfloat16")


def unfit_name(name: str) -> str | None:
    try:
        fits = 0 < len(name.encode()) <= MAX_LAYER_NAME_BYTES and "\0" not in name
    except UnicodeEncodeError:
        fits = False
    return None if fits else f"name is not 1 to {MAX_LAYER_NAME_BYTES} UTF-8 bytes without NUL"


def no_tensor(value: Any) -> str | None:
    """Why there is nothing yet whose shape could be asked for; None if there is."""
    import torch

    if not isinstance(value, torch.Tensor):
        return "not a tensor"
    return "not initialised yet" if torch.nn.parameter.is_lazy(value) else None


def unfit(tensor: Any, shape: tuple[int, ...], decodes: bool = False) -> str | None:
    """Why `tensor`, which is all or a part of a matrix of this `shape`, is not one to watch; None if it is. `decodes`:
    its elements are not the values, which something else makes of them."""
    import torch

    if hasattr(tensor, "device_mesh") and hasattr(tensor, "placements"):
        return "sharded (DTensor)"
    if hasattr(tensor, "fake_mode"):
        return "fake"  # torch's stand-in without values, whose memory may not even be asked for
    dtype = str(tensor.dtype)
    return next(
        (
            reason
            for wrong, reason in (
                (len(shape) < 2, "fewer than 2 dimensions"),
                (not decodes and dtype.removeprefix("torch.") not in SOURCE_DTYPES, f"dtype {dtype}"),
                (tensor.layout is not torch.strided, "sparse"),
                (tensor.is_meta, "meta"),
                (0 in shape, "empty"),
                (len(shape) > MAX_DIMENSIONS, f"more than {MAX_DIMENSIONS} dimensions"),
                (math.prod(shape) >= MAX_ELEMENTS, "too many elements"),
            )
            if wrong
        ),
        None,
    )
