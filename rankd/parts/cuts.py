"""Which rows or columns of a matrix are a part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankd.parts.rules import Rule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Cut:
    """Of each of `num_blocks` equal blocks of rows (axis 0) or columns (axis 1), the `length` from `start` on."""

    axis: int
    num_blocks: int
    start: int
    length: int

    def shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Of what `take` gives of a rows × cols matrix."""
        along = self.num_blocks * self.length
        return (along, cols) if self.axis == 0 else (rows, along)

    def take(self, matrices: torch.Tensor) -> torch.Tensor:
        """The part of a (…, rows, cols) tensor: a view where strides allow it, else a copy of the part alone."""
        dim = self.axis - 2
        before, after = matrices.shape[:dim], matrices.shape[dim:][1:]
        blocks = matrices.reshape(*before, self.num_blocks, matrices.shape[dim] // self.num_blocks, *after)
        return blocks.narrow(dim, self.start, self.length).flatten(dim - 1, dim)


def cuts_of(rule: Rule, rows: int, cols: int) -> dict[str, Cut] | None:
    """Each part of a rows × cols matrix, neither side 0, by its name: together every element once. None where the rule
    does not fit. Costs as many steps as there are parts, whatever the shape."""
    axis = _axis(rule, rows, cols)
    if axis is None:
        return None
    unit = (rows, cols)[axis] // rule.num_units
    cuts: dict[str, Cut] = {}
    start = 0
    for name, num_units in zip(rule.names, rule.units, strict=True):
        if rule.per_head:
            cuts |= _heads(rule, axis, unit, name, start, num_units)
        else:
            cuts[name] = Cut(axis, rule.num_blocks, start * unit, num_units * unit)
        start += num_units
    return cuts


def _heads(rule: Rule, axis: int, unit: int, name: str, start: int, num_units: int) -> dict[str, Cut]:
    """The heads of one part, which begins `start` units into each block. Each lies in one piece."""
    block = sum(rule.units)
    places = (index * block + start + within for index in range(rule.num_blocks) for within in range(num_units))
    return {f"{name}.head{head}": Cut(axis, 1, place * unit, unit) for head, place in enumerate(places)}


def _axis(rule: Rule, rows: int, cols: int) -> int | None:
    axes = (0, 1) if rule.axis is None else (rule.axis,)
    if rule.sizes is not None:
        fitting = [axis for axis in axes if (rows, cols)[axis] == rule.num_units]
    else:
        fitting = [axis for axis in axes if (rows, cols)[axis] % rule.num_units == 0]
    # Of k equal parts fused from square ones a matrix is k times as long as it is wide. Where that does not tell, rows:
    # torch keeps a linear layer's outputs there.
    if len(fitting) == 2 and len(rule.names) > 1 and cols == len(rule.names) * rows:
        return 1
    return fitting[0] if fitting else None
