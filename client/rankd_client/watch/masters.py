"""Float32 copies that optimizers keep of weights in fewer bits: it is them that training moves, and their spectra
differ from those of what was rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STATE_KEYS = ("master_param", "master_weights", "master_weight", "master_copy", "master", "main_param", "fp32_param")
"""What `optimizer.state[parameter]` calls it: the first two in apex and Transformer Engine, the others in optimizers
that people write for themselves."""

PAIRED = (
    ("float16_groups", "fp32_from_float16_groups"),  # Megatron
    ("fp16_groups", "fp32_from_fp16_groups"),  # apex
    ("fp16_groups", "fp32_groups"),  # DeepSpeed, unfused
)
"""Attributes with lists of lists of parameters, and of their copies in the same places."""

MAX_WRAPPED = 64
"""Optimizers inside optimizers that are looked through: a chain that leads back to itself has an end too."""


class Masters:
    """The copies that `optimizers` keep. Asking makes no entry in an optimizer's state, and starts no collective."""

    def __init__(self, optimizers: Iterable[Callable[[], Any]]) -> None:
        """`optimizers` as weak references, or other functions that give one or None."""
        self._states: list[Any] = []
        self._paired: dict[int, Any] = {}
        for optimizer in _unwrapped(find() for find in optimizers):
            self._states.append(getattr(optimizer, "state", None))
            self._paired |= {id(parameter): master for parameter, master in _pairs(optimizer)}

    def of(self, parameter: Any) -> torch.Tensor | str | None:
        """The copy, in the parameter's shape; why the parameter is taken all the same; None: there is no copy."""
        import torch

        master = next((each for each in self._candidates(parameter) if isinstance(each, torch.Tensor)), None)
        if master is None or master is parameter:
            return None
        if master.dtype not in (torch.float32, torch.float64):
            return f"master of {master.dtype}"
        if master.shape != parameter.shape and master.numel() != parameter.numel():
            return f"master of shape {tuple(master.shape)}, a shard"
        return master.detach() if master.shape == parameter.shape else master.detach().view(parameter.shape)

    def _candidates(self, parameter: Any) -> Iterator[Any]:
        yield getattr(parameter, "main_param", None)  # Megatron
        yield getattr(getattr(parameter, "_hp_mapping", None), "hp_fragment", None)  # DeepSpeed
        yield self._paired.get(id(parameter))
        for states in self._states:
            state = states.get(parameter) if isinstance(states, dict) else None  # [] would make an entry
            if isinstance(state, dict):
                yield from (state.get(key) for key in STATE_KEYS)


def _unwrapped(optimizers: Iterable[Any]) -> list[Any]:
    """Each of them, and those that they wrap."""
    found: list[Any] = []
    left = list(optimizers)
    while left and len(found) < MAX_WRAPPED:
        optimizer = left.pop()
        if optimizer is None or any(optimizer is other for other in found):
            continue
        found.append(optimizer)
        left += [getattr(optimizer, "optimizer", None), *(getattr(optimizer, "chained_optimizers", None) or ())]
    return found


def _pairs(optimizer: Any) -> Iterator[tuple[Any, Any]]:
    for ours, theirs in PAIRED:
        groups, copies = getattr(optimizer, ours, None), getattr(optimizer, theirs, None)
        if isinstance(groups, list | tuple) and isinstance(copies, list | tuple):
            yield from zip(chain.from_iterable(groups), chain.from_iterable(copies), strict=False)
    masters = getattr(optimizer, "param_groups_master", None)  # apex's FusedAdam
    if isinstance(masters, list | tuple):
        for group, of_masters in zip(getattr(optimizer, "param_groups", ()), masters, strict=False):
            yield from zip(group["params"], of_masters["params"], strict=False)
