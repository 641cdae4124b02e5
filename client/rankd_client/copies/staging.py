"""The staging piece on a GPU: many tensors are cast into it at once, and leave it in few copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from rankd_client.arena import ALIGNMENT_BYTES, Block, Region, aligned
from rankd_client.copies.halves import cast_half
from rankd_client.copies.memory import torch_dtype
from rankd_client.lots import MAX_LAID

if TYPE_CHECKING:
    import torch

    Views = tuple[list[torch.Tensor], list[torch.Tensor]]
    """Of targets and sources, in as many copies."""

Part = tuple[int, int, int, int]
"""Which tensor, from where on in it, from where on in the staging piece, and how many bytes."""

Span = tuple["torch.Tensor", int, int, int]
"""A block of the arena (uint8), from where on in it, from where on in the staging piece, and how many bytes."""


@dataclass(slots=True)
class Round:
    """What goes through the staging piece at once."""

    casts: dict[object, tuple[list[torch.Tensor], list[torch.Tensor]]] = field(default_factory=dict)
    """Targets and sources, by their dtypes and layout: alike they take one launch, else one each."""
    cuts: list[tuple[torch.Tensor, torch.Tensor, int, int]] = field(default_factory=list)
    """Target and source, of which it is the piece of that number among pieces of so many elements."""
    parts: list[Part] = field(default_factory=list)


class Recipe:
    """How some tensors go through the staging piece (uint8, on the GPU), in rounds. It can be followed again while they
    are the same, whatever regions they go to: that is a fifth of the work. It holds the tensors themselves and no views
    of them: a model that is moved off the GPU takes its memory along, once what is being copied of it is not kept any
    more."""

    def __init__(self, staging: torch.Tensor, sources: Sequence[tuple[str, torch.Tensor]]) -> None:
        """`sources`: each tensor, and the dtype in which it travels."""
        self._staging = staging
        self._num_bytes = len(staging)  # which torch takes its time to tell
        self._rounds = [Round()]
        self._at = 0
        self._laid: dict[tuple[Block, int], list[Views]] = {}
        for index, (dtype, source) in enumerate(sources):
            self._add(index, dtype, source)

    def follow(self, regions: Sequence[Region], keeps: list[object]) -> None:
        """Begin to copy each tensor into its region, on the current stream. What is put into `keeps` has to live until
        that is done: a tensor may be given other memory meanwhile, and what it had go to somebody else."""
        self._run([self._views(each.parts, regions) for each in self._rounds], keeps)

    def follow_side_by_side(self, whole: Region, regions: Sequence[Region], keeps: list[object]) -> None:
        """`regions` lie in `whole`, one behind another. Where they lay there before, hardly anything is done anew."""
        place = whole.block, whole.start
        if (laid := self._laid.get(place)) is None:
            if len(self._laid) >= MAX_LAID:
                self._laid.clear()
            laid = self._laid[place] = [self._views(each.parts, regions) for each in self._rounds]
        self._run(laid, keeps)

    def _run(self, copies: Sequence[Views], keeps: list[object]) -> None:
        import torch

        for each, (targets, sources) in zip(self._rounds, copies, strict=True):
            for cast, plain in each.casts.values():
                views = [tensor.detach() for tensor in plain]
                keeps.append(views)
                torch._foreach_copy_(cast, views)
            for target, source, number, max_elements in each.cuts:
                piece = next(islice(pieces(source.detach(), max_elements), number, None))
                keeps.append(piece)
                target.copy_(piece)
            if targets:
                torch._foreach_copy_(targets, sources, non_blocking=True)

    def _views(self, parts: Sequence[Part], regions: Sequence[Region]) -> Views:
        """Of the arena and of the staging piece, by which a round's parts leave it."""
        targets, sources = [], []
        for block, position, start, num_bytes in _spans(parts, regions):
            targets.append(block[position : position + num_bytes])
            sources.append(self._staging[start : start + num_bytes])
        return targets, sources

    def _add(self, index: int, dtype: str, source: torch.Tensor) -> None:
        as_dtype = torch_dtype(dtype)
        max_elements = self._num_bytes // as_dtype.itemsize
        offset = 0
        for number, piece in enumerate(pieces(source, max_elements)):
            num_bytes = piece.numel() * as_dtype.itemsize
            start = aligned(self._at)
            if start + num_bytes > self._num_bytes:
                self._rounds.append(Round())
                start = 0
            newest = self._rounds[-1]
            target = self._staging[start : start + num_bytes].view(as_dtype).view(piece.shape)
            if piece is source:
                targets, sources = newest.casts.setdefault((as_dtype, piece.dtype, piece.is_contiguous()), ([], []))
                targets.append(target)
                sources.append(piece)
            else:
                newest.cuts.append((target, source, number, max_elements))
            newest.parts.append((index, offset, start, num_bytes))
            self._at = start + num_bytes
            offset += num_bytes


def _spans(parts: Sequence[Part], regions: Sequence[Region]) -> list[Span]:
    """What lies beside one another in the arena as it does in the staging piece goes in one copy."""
    spans: list[Span] = []
    for index, offset, start, num_bytes in parts:
        region = regions[index]
        block, position = region.block.memory.owner, region.start + offset
        if spans:
            last_block, last_position, last_start, last_bytes = spans[-1]
            gap = position - (last_position + last_bytes)
            if last_block is block and 0 <= gap < ALIGNMENT_BYTES and start - last_start == position - last_position:
                spans[-1] = block, last_position, last_start, last_bytes + gap + num_bytes
                continue
        spans.append((block, position, start, num_bytes))
    return spans


def copy_half(staging: torch.Tensor, source: torch.Tensor, region: Region, unfit: torch.Tensor) -> None:
    """Begin to copy `source` into its region as float16, or if it is `unfit` as bfloat16."""
    import torch

    position = region.start
    block: torch.Tensor = region.block.memory.owner
    for piece in pieces(source, len(staging) // 2):
        num_bytes = 2 * piece.numel()
        cast = staging[:num_bytes]
        cast_half(piece, unfit, cast.view(torch.int16).view(piece.shape))
        block[position : position + num_bytes].copy_(cast, non_blocking=True)
        position += num_bytes


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
