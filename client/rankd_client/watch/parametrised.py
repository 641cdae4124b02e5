"""Weights that are computed from other parameters before each use: by weight_norm and spectral_norm, old and new.

What the model multiplies with is the weight, so that is what is watched, under its own name. It is computed here from
the parameters and buffers as they are: reading it off the module would advance spectral_norm's power iteration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankd_client.watch.place import Place

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Original:
    """A parameter that a weight is made of. `decode` makes the weight from it; without, it is a part alone."""

    kind: str
    suffix: str
    decode: Callable[[Any], torch.Tensor] | None = None

    def weight_name(self, name: str) -> str:
        """`lin.parametrizations.weight.original1` → `lin.weight`, `lin.weight_v` → `lin.weight`."""
        name = name.removesuffix(self.suffix)
        if not self.suffix.startswith("."):
            return name
        *path, _, weight = name.split(".")
        return ".".join((*path, weight))


class ParametrisedAdapter:
    def __init__(self, originals: dict[int, Original]) -> None:
        self._originals = originals

    @classmethod
    def of(cls, model: Any) -> ParametrisedAdapter | None:
        """None where `model` has no such weight."""
        if not callable(getattr(model, "modules", None)):
            return None
        originals: dict[int, Original] = {}
        for module in model.modules():
            if "parametrizations" in module._modules:
                originals |= {id(tensor): original for tensor, original in _new(module)}
            if module._forward_pre_hooks:
                originals |= {id(tensor): original for tensor, original in _old(module)}
        return cls(originals) if originals else None

    def place(self, name: str, tensor: Any) -> Place | str | None:
        original = self._originals.get(id(tensor))
        if original is None:
            return None
        weight = original.weight_name(name)
        if original.decode is None:
            return f"a part of {weight} ({original.kind})"
        if hasattr(tensor, "placements") or hasattr(tensor, "ds_tensor"):
            return f"sharded, and {weight} is computed from it ({original.kind})"
        return Place(weight, tensor, tuple(tensor.shape), decode=original.decode)


Originals = Iterator[tuple[Any, Original]]


def _new(module: Any) -> Originals:
    """By torch.nn.utils.parametrizations. A weight with another parametrisation, or with several, is left alone: its
    original is watched under the name that it has, and is not called the weight."""
    for steps in module.parametrizations.values():
        if len(steps) != 1 or type(steps[0]).__module__ != "torch.nn.utils.parametrizations":
            continue
        step, kind = steps[0], type(steps[0]).__name__
        if kind == "_WeightNorm":
            yield from _weight_norm(steps.original0, steps.original1, step.dim, (".original0", ".original1"))
        elif kind == "_SpectralNorm" and hasattr(step, "_u"):
            decode = _spectral_norm(step._u, step._v, step._reshape_weight_to_matrix)
            yield steps.original, Original("spectral_norm", ".original", decode)


def _old(module: Any) -> Originals:
    """By torch.nn.utils.weight_norm and spectral_norm, which hook themselves before forward."""
    weight_norm = getattr(sys.modules.get("torch.nn.utils.weight_norm"), "WeightNorm", ())
    spectral_norm = getattr(sys.modules.get("torch.nn.utils.spectral_norm"), "SpectralNorm", ())
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, weight_norm):
            g, v = (getattr(module, hook.name + suffix) for suffix in ("_g", "_v"))
            yield from _weight_norm(g, v, hook.dim, ("_g", "_v"))
        elif isinstance(hook, spectral_norm):
            original, u, v = (getattr(module, hook.name + suffix) for suffix in ("_orig", "_u", "_v"))
            yield original, Original("spectral_norm", "_orig", _spectral_norm(u, v, hook.reshape_weight_to_matrix))


def _weight_norm(g: Any, v: Any, dim: int, suffixes: tuple[str, str]) -> Originals:
    import torch

    yield g, Original("weight_norm", suffixes[0])
    yield v, Original("weight_norm", suffixes[1], lambda direction: torch._weight_norm(direction, g.detach(), dim))


def _spectral_norm(u: Any, v: Any, as_matrix: Callable[[Any], Any]) -> Callable[[Any], torch.Tensor]:
    """As the module has it in evaluation: σ = uᵀ W v, of the vectors that training has come to."""

    def decode(original: Any) -> torch.Tensor:
        matrix = as_matrix(original)
        scaled: torch.Tensor = original / (u @ (matrix @ v))
        return scaled

    return decode
