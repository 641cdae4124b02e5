"""Copies of one byte an element with a scale behind each row: how a tensor is rounded to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankd_client.wire import DTYPES, LARGEST, SCALE_BYTES

if TYPE_CHECKING:
    import torch

CPU_ELEMENTS = 1 << 19
"""At once: their 2 MB of float32 stay in a core's caches; with a quarter of them, starting the operations costs more
than they do."""

SMALLEST = 2.0**-149
"""Of float32. Added to a scale it rounds subnormal ones up, so that no quotient gets beyond LARGEST, and vanishes in
all others."""


def copy_scaled(dtype: str, source: torch.Tensor, target: torch.Tensor, staging: torch.Tensor | None = None) -> None:
    """Write `source` (floating, of any strides) into `target`: uint8, (rows, elements of a row + 4), on the CPU.

    A row that is not finite gets a scale that is not, and zeros. From a GPU, where it is rounded, a quarter of the
    bytes cross the bus, by way of `staging` (uint8, there: most of it for float32) and without waiting for them.
    """
    import torch

    width = target.shape[1] - SCALE_BYTES
    if staging is None:
        buffer = torch.empty(min(source.numel(), CPU_ELEMENTS), dtype=torch.float32, device=source.device)
        max_elements = buffer.numel()
    else:
        max_elements = max(width, max_rows(width, len(staging)) * width)
        buffer, staging = cut_staging(staging)
    at = 0
    for rows in _blocks(source, width, max_elements):
        some = target[at : at + len(rows)]
        at += len(rows)
        if staging is None:
            pack(dtype, rows, some, buffer)
        else:
            fits = some.numel() <= len(staging)  # but for one very long row
            packed = staging[: some.numel()].view(some.shape) if fits else torch.empty_like(some, device=source.device)
            pack(dtype, rows, packed, buffer)
            some.copy_(packed, non_blocking=True)


def staging_bytes(dtype: str, num_bytes: int) -> int:
    """Of a staging piece, for what travels as so many bytes to go through it at once: an element takes 4 as float32, in
    three quarters of it, and so 5.4 in all; the rest is for alignment."""
    return 6 * num_bytes if DTYPES[dtype].scaled else num_bytes


def cut_staging(staging: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of it, for float32 and for bytes."""
    import torch

    at = _float_bytes(len(staging))
    return staging[:at].view(torch.float32), staging[at:]


def _float_bytes(num_bytes: int) -> int:
    """Of a staging piece, for float32; the rest, for bytes, has a little more than a quarter of that: the scales."""
    return num_bytes * 3 // 4 & ~63


def max_rows(width: int, staging_bytes: int) -> int:
    """That go through a staging piece at once."""
    float_bytes = _float_bytes(staging_bytes)
    return min(float_bytes // (4 * width), (staging_bytes - float_bytes) // (width + SCALE_BYTES))


def _blocks(tensor: torch.Tensor, width: int, max_elements: int) -> Iterator[torch.Tensor]:
    """`tensor` as (rows, width), so many rows at once as have `max_elements`, one at least: views, or copies where its
    strides allow none."""
    each = math.prod(tensor.shape[1:])
    if each > max_elements and each > width:  # of several rows: a matrix of a stack
        for part in tensor:
            yield from _blocks(part, width, max_elements)
        return
    count = max(1, max_elements // each)
    for start in range(0, len(tensor), count):
        yield tensor[start : start + count].reshape(-1, width)


def pack(dtype: str, rows: torch.Tensor, packed: torch.Tensor, buffer: torch.Tensor) -> None:
    """Round `rows` into `packed`, by way of the float32 `buffer`; where that is shorter than one row, in pieces."""
    import torch

    count, width = rows.shape
    if rows.is_cuda:  # one launch; on the CPU that is 20 times slower
        peaks = torch.linalg.vector_norm(rows, math.inf, dim=1)
    else:
        peaks = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))  # NaN of a row with one
    scales = peaks.float() / LARGEST[dtype] + SMALLEST
    finite = torch.isfinite(scales)
    is_sound = not rows.is_cuda and bool(finite.all())  # on a GPU asking would cost more than it saves
    divisors = torch.where(scales > 0, scales, 1.0).unsqueeze(1)  # 0 where the trainer has subnormals flushed
    as_dtype = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}[dtype]
    step = buffer.numel() // count
    for start in range(0, width, step):
        piece = rows[:, start : start + step]
        values = torch.div(piece, divisors, out=buffer[: piece.numel()].view(piece.shape))
        if not is_sound:
            values.masked_fill_(~finite.unsqueeze(1), 0.0)
        if dtype == "int8":
            values.round_()
        packed[:, start : start + piece.shape[1]].view(as_dtype).copy_(values)
    packed[:, width:].copy_(scales.view(torch.uint8).view(count, SCALE_BYTES))
