"""Megatron's ways: tensor parallel by attributes, layers numbered within a pipeline's stage, experts within a process.

Also for jobs that split their layers or experts likewise and have no Megatron: everything can be given.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

from rankd_client.watch.frameworks.cut import Cut, Intervals, strided_chunk
from rankd_client.watch.place import Place

LAYERS = r"(?:^|\.)layers\.(\d+)\."
EXPERTS = r"(?:^|\.)(?:local_experts\.(\d+)\.|experts\.linear_fc[12]\.weight(\d+)$)"


class MegatronAdapter:
    """Global names and places of the parameters of one process of a Megatron job.

    A parameter with `tensor_model_parallel` is a part along its `partition_dim` (in `partition_stride` pieces). One
    whose name matches `expert_pattern`, or with `allreduce` False, is an expert's. All others are whole, and alike in
    each process of the tensor-parallel group.

    Args:
        tensor_process_rank, tensor_size: which process of its tensor-parallel group this is, and of how many.
        replica: which of the processes with the same parameters: its number in the data-parallel group, that of
            context parallelism included. 0 pushes.
        first_layer: what to add to the layer numbers in names: how many layers the stages before this one have.
        first_expert: the same for the numbers of experts.
        expert_tensor_process_rank, expert_tensor_size, expert_replica: the first three, for experts.
        layer_pattern, expert_pattern: regular expressions of names; the group that matches is the number.

    What is left out is asked of `megatron.core.parallel_state` where that is initialised, and is else 0 of 1, for
    experts as for the others. `first_layer` and `first_expert` it does not know: a name that needs them is skipped
    until they are given. Raises ValueError naming the argument, its value and what was expected.
    """

    def __init__(
        self,
        *,
        tensor_process_rank: int | None = None,
        tensor_size: int | None = None,
        replica: int | None = None,
        first_layer: int | None = None,
        first_expert: int | None = None,
        expert_tensor_process_rank: int | None = None,
        expert_tensor_size: int | None = None,
        expert_replica: int | None = None,
        layer_pattern: str = LAYERS,
        expert_pattern: str = EXPERTS,
    ) -> None:
        numbers = {
            "replica": replica,
            "first_layer": first_layer,
            "first_expert": first_expert,
            "expert_replica": expert_replica,
        }
        for key, value in numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{key}={value!r}: expected an integer of at least 0")
        self._tensor = _part_of("tensor", tensor_process_rank, tensor_size)
        self._expert_tensor = _part_of("expert_tensor", expert_tensor_process_rank, expert_tensor_size) or self._tensor
        self._replica = replica
        self._expert_replica = replica if expert_replica is None else expert_replica
        self._layers = _pattern("layer_pattern", layer_pattern), "first_layer", first_layer, "pipeline_model_parallel"
        self._experts = (
            _pattern("expert_pattern", expert_pattern),
            "first_expert",
            first_expert,
            "expert_model_parallel",
        )

    def place(self, name: str, tensor: Any) -> Place | str | None:
        if hasattr(tensor, "placements") or not hasattr(tensor, "dtype"):
            return None  # a DTensor, or none at all
        is_expert = self._experts[0].search(name) is not None
        if not is_expert and getattr(tensor, "allreduce", True) is False:
            return "experts without a number in their name"
        for pattern, option, first, kind in (self._layers, self._experts):
            match = pattern.search(name)
            if match is None:
                continue
            if first is None and _state(f"get_{kind}_world_size", 1) > 1:
                return f"local number: MegatronAdapter needs {option}"
            name = _renumbered(name, match, first or 0)
        return self._place(name, tensor, is_expert)

    def _place(self, name: str, tensor: Any, is_expert: bool) -> Place | str:
        at, size = (self._expert_tensor if is_expert else self._tensor) or (
            (_state("get_expert_tensor_parallel_rank", 0), _state("get_expert_tensor_parallel_world_size", 1))
            if is_expert
            else (_state("get_tensor_model_parallel_rank", 0), _state("get_tensor_model_parallel_world_size", 1))
        )
        replica = self._expert_replica if is_expert else self._replica
        if replica is None:
            replica = _state("get_expert_data_parallel_rank", 0) if is_expert else _data_process_rank()
        shape = tuple(tensor.shape)
        if size == 1 or len(shape) < 2 or not getattr(tensor, "tensor_model_parallel", False):
            return Place(name, tensor, shape, replica=replica * size + at)
        dim, stride = tensor.partition_dim, getattr(tensor, "partition_stride", 1)
        shape = (*shape[:dim], shape[dim] * size, *shape[dim + 1 :])
        kept: list[Intervals] = [((0, length),) for length in shape]
        kept[dim] = strided_chunk(kept[dim], stride, size, at)
        cut = Cut(shape, tuple(kept))
        shard = cut.shard()
        if shard is None or cut.num_elements != math.prod(tensor.shape):
            return f"tensor parallel in {stride} pieces"
        group = f"{'experts' if is_expert else 'layers'} × {size}"
        return Place(name, cut.view(tensor), shape, shard, replica, size, group)


def _state(question: str, default: int) -> int:
    """An answer of Megatron's, which none of its processes has to be asked for."""
    state = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized() or not hasattr(state, question):
        return default
    return int(getattr(state, question)())


def _data_process_rank() -> int:
    state = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return 0
    return int(state.get_data_parallel_rank(with_context_parallel=True))


def _renumbered(name: str, match: re.Match[str], first: int) -> str:
    group = next(number for number in range(1, match.re.groups + 1) if match[number] is not None)
    start, end = match.span(group)
    return f"{name[:start]}{int(match[group]) + first}{name[end:]}"


def _part_of(kind: str, process_rank: int | None, size: int | None) -> tuple[int, int] | None:
    if process_rank is None and size is None:
        return None
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (process_rank, size))
    if not whole or not 0 <= (process_rank or 0) < (size or 0):
        raise ValueError(
            f"{kind}_process_rank={process_rank!r}, {kind}_size={size!r}: expected both, integers from 0, "
            "the first below the second"
        )
    return process_rank or 0, size or 1


def _pattern(key: str, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
        numbered = pattern.groups > 0
    except (re.error, TypeError):
        numbered = False
    if not numbered:
        raise ValueError(f"{key}={text!r}: expected a regular expression with a group that matches the number")
    return pattern
