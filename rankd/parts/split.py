"""A weight's name and shape → its matrices. No tensor is needed to decide, so that work can be planned before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rankd.parts.cuts import Cut, cuts_of
from rankd.parts.defaults import default_rule, fused_name
from rankd.parts.rules import NO_RULES, Rule, SplitRules

if TYPE_CHECKING:
    import torch

Kind = Literal["plain", "experts", "fused"]

MAX_MATRICES = 1024
"""In one weight, experts times parts: each is decomposed by itself, and shapes come from untrusted peers."""

MIN_EXPERT_SIDE = 16
"""A 3-D weight that no name explains is a stack of matrices if both their sides are this long. Kernels of 1-D
convolutions, the usual other case, are shorter."""

PART_SEPARATOR = ":"


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix in a weight of `weight_shape`, or the same one in each of a stack's; `name` is "" for all of it."""

    name: str
    weight_shape: tuple[int, ...]
    is_stack: bool = False
    cut: Cut | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what `view` gives: (m, n), or (count, m, n) of a stack."""
        *count, rows, cols = self._matrices
        return (*count, *(self.cut.shape(rows, cols) if self.cut is not None else (rows, cols)))

    def view(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix, (m, n), or the matrices, (count, m, n), without a gradient: a view where strides allow it, which
        is not to be written to. Raises ValueError for a weight of another shape."""
        if tuple(weight.shape) != self.weight_shape:
            raise ValueError(f"weight is of shape {tuple(weight.shape)}; expected {self.weight_shape}")
        matrices = weight.detach().reshape(self._matrices)
        return matrices if self.cut is None else self.cut.take(matrices)

    @property
    def _matrices(self) -> tuple[int, ...]:
        shape = self.weight_shape
        return shape if self.is_stack else (shape[0], math.prod(shape[1:]))


@dataclass(frozen=True, slots=True)
class Split:
    """The matrices of one weight. Each element of it is in exactly one of `parts`.

    `whole` is all of it, and the only part unless `kind` is "fused". `reason` is for the user to read: why the weight
    is not split although its name or a rule says so, or what was assumed when it was.
    """

    kind: Kind
    parts: tuple[Part, ...]
    whole: Part
    reason: str | None = None


def split(layer: str, shape: tuple[int, ...], rules: SplitRules = NO_RULES) -> Split:
    """The matrices of the weight `layer` of this shape. A rule of the user's comes before what is known of names; one
    that does not fit leaves the weight whole and says so. Any name and any shape are answered, in as many steps as
    there are parts. Raises ValueError for fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ValueError(f"{layer!r} is of shape {shape}; expected two or more dimensions")
    flat = Part("", shape)
    if 0 in shape:
        return Split("plain", (flat,), flat)
    rule = rules.find(layer)
    if rule is not None and rule.experts and len(shape) != 3:
        return Split("plain", (flat,), flat, f"split rule {rule.text!r} expects three dimensions, not {len(shape)}")
    if _is_stack(layer, shape, rule):
        divided = _divide(layer, Part("", shape, is_stack=True), rule)
        if (number := shape[0] * len(divided.parts)) > MAX_MATRICES:
            reason = f"a stack of {number} matrices is taken as one matrix; {MAX_MATRICES} at most"
            return Split("plain", (flat,), flat, reason)
        return divided
    if rule is None and len(shape) > 2 and (name := fused_name(layer)) is not None:
        reason = f"{name} of {len(shape)} dimensions is known neither as a stack nor as a matrix; a split rule tells"
        return Split("plain", (flat,), flat, reason)
    return _divide(layer, flat, rule)


def one_matrix(shape: tuple[int, ...]) -> Split:
    """All of it as (size(0), the rest), whatever it is called. Of two or more dimensions."""
    flat = Part("", shape)
    return Split("plain", (flat,), flat)


def part_name(layer: str, part: str) -> str:
    """What the row of a part is called: LAYER:PART, and LAYER for the whole."""
    return f"{layer}{PART_SEPARATOR}{part}" if part else layer


def whole_name(name: str) -> str:
    """Of which layer a row of this name may be a part; "" if of none."""
    return name.rpartition(PART_SEPARATOR)[0]


def _is_stack(layer: str, shape: tuple[int, ...], rule: Rule | None) -> bool:
    if rule is not None and rule.experts is not None:
        return rule.experts
    name = layer.lower()
    known = "expert" in name or min(shape[1:]) >= MIN_EXPERT_SIDE
    return len(shape) == 3 and "conv" not in name and known


def _divide(layer: str, whole: Part, rule: Rule | None) -> Split:
    """`whole` cut by the rule, or by what is known of the name."""
    kind: Kind = "experts" if whole.is_stack else "plain"
    rows, cols = whole.shape[-2:]
    reason = None
    if rule is None:
        rule, reason = default_rule(layer, rows, cols, whole.is_stack)
    if rule is None or not rule.names:
        return Split(kind, (whole,), whole, reason)
    cuts = cuts_of(rule, rows, cols)
    if cuts is None:
        return Split(kind, (whole,), whole, f"split rule {rule.text!r} expects {rule.fits}, not {rows} × {cols}")
    parts = (Part(name, whole.weight_shape, whole.is_stack, cut) for name, cut in cuts.items())
    return Split("fused", tuple(parts), whole, reason)
