"""How what a push takes from one GPU goes through the staging piece: laid down once, followed while it is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rankd_client.arena import Region
from rankd_client.copies.memory import bytes_of
from rankd_client.copies.scaled import cut_staging, max_rows, pack
from rankd_client.copies.staging import Recipe
from rankd_client.watch import Watched
from rankd_client.wire import DTYPES, SCALE_BYTES, row_elements

if TYPE_CHECKING:
    import torch

Part = tuple[int, int, int]
"""Which tensor, and of its rows from which one to which."""


class ScaledRecipe:
    """As staging.Recipe, of tensors with rows of one width that each get a scale: as many rows are rounded at once as
    there is room for, whosever they are. Each launch keeps the training thread, and a matrix by itself takes 12."""

    def __init__(self, staging: torch.Tensor, dtype: str, width: int, sources: Sequence[torch.Tensor]) -> None:
        self._buffer, self._packed = cut_staging(staging)
        self._dtype, self._width = dtype, width
        self._sources = tuple(sources)
        counts = [source.numel() // width for source in sources]
        self._rounds = [*_rounds(counts, max_rows(width, len(staging)))]

    def follow(self, regions: Sequence[Region], keeps: list[object]) -> None:
        """Begin to copy each tensor into its region, on the current stream; `keeps` as there."""
        import torch

        width, row_bytes = self._width, self._width + SCALE_BYTES
        rows = [source.detach().reshape(-1, width) for source in self._sources]  # strides may have changed since
        keeps.append(rows)
        places = [bytes_of(region).view(-1, row_bytes) for region in regions]
        for parts in self._rounds:
            counts = [end - start for _, start, end in parts]
            values = self._buffer[: sum(counts) * width].view(-1, width)
            packed = self._packed[: sum(counts) * row_bytes].view(-1, row_bytes)
            sources = [rows[index][start:end] for index, start, end in parts]
            targets = [places[index][start:end] for index, start, end in parts]
            torch._foreach_copy_(torch.split(values, counts), sources)
            pack(self._dtype, values, packed, self._buffer)
            torch._foreach_copy_(targets, torch.split(packed, counts), non_blocking=True)

    def follow_side_by_side(self, whole: Region, regions: Sequence[Region], keeps: list[object]) -> None:
        self.follow(regions, keeps)


class Recipes:
    """Of all that goes without a special way. `items` by their numbers in the push."""

    def __init__(self, staging: torch.Tensor, items: Mapping[int, Watched]) -> None:
        plain: list[int] = []
        alike: dict[tuple[str, int], list[int]] = {}
        for index, item in items.items():
            is_scaled = DTYPES[item.dtype].scaled
            (alike.setdefault((item.dtype, row_elements(item.shape)), []) if is_scaled else plain).append(index)
        self._all: list[tuple[list[int], Recipe | ScaledRecipe]] = [
            (indices, ScaledRecipe(staging, *kind, [items[index].tensor for index in indices]))
            for kind, indices in alike.items()
        ]
        if plain:
            self._all.append((plain, Recipe(staging, [(items[index].dtype, items[index].tensor) for index in plain])))

    def follow(self, regions: Sequence[Region], keeps: list[object]) -> None:
        """`regions` of the whole push."""
        for indices, recipe in self._all:
            recipe.follow([regions[index] for index in indices], keeps)

    def follow_side_by_side(self, whole: Region, regions: Sequence[Region], keeps: list[object]) -> None:
        """The same where all of them lie in `whole`, one behind another."""
        for indices, recipe in self._all:
            recipe.follow_side_by_side(whole, [regions[index] for index in indices], keeps)


def goes_with_others(source: torch.Tensor, width: int, staging: torch.Tensor) -> bool:
    """Whether its rows may be rounded along with others': they lie one behind another, float32 holds their values, and
    there is room for one."""
    import torch

    return source.is_contiguous() and source.dtype != torch.float64 and max_rows(width, len(staging)) > 0


def _rounds(counts: Sequence[int], most: int) -> Iterator[list[Part]]:
    """All rows of tensors with so many each, at most so many at once."""
    parts: list[Part] = []
    room = most
    for index, count in enumerate(counts):
        start = 0
        while start < count:
            end = min(count, start + room)
            parts.append((index, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield parts
                parts, room = [], most
    if parts:
        yield parts
