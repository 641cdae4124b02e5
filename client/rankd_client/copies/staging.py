"""The staging piece on a GPU: many tensors are cast into it at once, and leave it in few copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from rankd_client.arena import ALIGNMENT_BYTES, Region, aligned
from rankd_client.copies.halves import cast_half

if TYPE_CHECKING:
    import torch


class Run:
    """What is cast into the staging piece (uint8, on the GPU) before it is copied out: many tensors at once, by few
    launches. On the current stream.

    `steps` are what it did, to be done again for the same tensors and regions: a fifth of the work.
    """

    def __init__(self, staging: torch.Tensor) -> None:
        self.steps: list[Callable[[], Any]] = []
        self._staging = staging
        self._num_bytes = len(staging)  # which torch takes its time to tell
        self._casts: dict[object, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        """Targets and sources, by their dtypes and layout: alike they take one launch, else one each."""
        self._spans: list[tuple[torch.Tensor, int, int, int]] = []
        """Of the arena: a block's bytes, from where on, from where on in the staging piece, and how many."""
        self._at = 0

    def add(self, dtype: str, source: torch.Tensor, region: Region) -> None:
        import torch

        as_dtype: torch.dtype = getattr(torch, dtype)
        position = region.start
        block: torch.Tensor = region.block.memory.owner
        for piece in pieces(source, self._num_bytes // as_dtype.itemsize):
            num_bytes = piece.numel() * as_dtype.itemsize
            start = self._place(block, position, num_bytes)
            target = self._staging[start : start + num_bytes].view(as_dtype).view(piece.shape)
            targets, sources = self._casts.setdefault((as_dtype, piece.dtype, piece.is_contiguous()), ([], []))
            targets.append(target)
            sources.append(piece)
            position += num_bytes

    def add_half(self, source: torch.Tensor, region: Region, unfit: torch.Tensor) -> None:
        """As float16, or if it is `unfit` as bfloat16."""
        import torch

        position = region.start
        block: torch.Tensor = region.block.memory.owner
        for piece in pieces(source, self._num_bytes // 2):
            start = self._place(block, position, 2 * piece.numel())
            target = self._staging[start : start + 2 * piece.numel()].view(torch.int16).view(piece.shape)
            cast_half(piece, unfit, target)
            position += 2 * piece.numel()

    def _place(self, block: torch.Tensor, position: int, num_bytes: int) -> int:
        """Where in the staging piece; behind what lies before it in the arena too, so that both go in one copy."""
        if self._spans:
            last_block, last_position, last_start, last_bytes = self._spans[-1]
            gap = position - (last_position + last_bytes)
            start = last_start + last_bytes + gap
            if last_block is block and 0 <= gap < ALIGNMENT_BYTES and start + num_bytes <= self._num_bytes:
                self._spans[-1] = block, last_position, last_start, last_bytes + gap + num_bytes
                self._at = start + num_bytes
                return start
        start = aligned(self._at)
        if start + num_bytes > self._num_bytes:
            self.flush()
            start = 0
        self._spans.append((block, position, start, num_bytes))
        self._at = start + num_bytes
        return start

    def flush(self) -> None:
        import torch

        steps: list[Callable[[], Any]] = [partial(torch._foreach_copy_, *cast) for cast in self._casts.values()]
        for block, position, start, num_bytes in self._spans:
            source, target = self._staging[start : start + num_bytes], block[position : position + num_bytes]
            steps.append(partial(target.copy_, source, non_blocking=True))
        for step in steps:
            step()
        self.steps += steps
        self._casts, self._spans, self._at = {}, [], 0


def pieces(tensor: torch.Tensor, max_elements: int) -> Iterator[torch.Tensor]:
    """Views of at most `max_elements` that are `tensor` together, row-major."""
    import torch

    if tensor.numel() <= max_elements:
        yield tensor
    elif tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), max_elements)
    elif (rows := max_elements // (tensor.numel() // len(tensor))) > 0:
        yield from torch.split(tensor, rows)
    else:
        for part in tensor:
            yield from pieces(part, max_elements)
