"""FSDP1 (`FullyShardedDataParallel`): flat parameters, cut without regard to rows. Read off its handles."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rankd_client.watch.place import Place
from rankd_client.wire import Shard


@dataclass(frozen=True, slots=True)
class FlatPart:
    """What a process holds of one parameter: `values` of one dimension, elements `[start, start + values.numel())`."""

    values: Any
    shape: tuple[int, ...]
    start: int
    shard_elements: int
    """Of the whole flat parameter, in each process; 0 where it is not sharded."""
    replica: int
    num_processes: int
    reason: str | None = None


class Fsdp1Adapter:
    """Knows what `tensors_of` makes of a flat parameter."""

    def place(self, name: str, tensor: Any) -> Place | str | None:
        if not isinstance(tensor, FlatPart):
            return "flattened by FSDP: push the module itself" if getattr(tensor, "_fsdp_flattened", False) else None
        if tensor.reason is not None:
            return tensor.reason
        num_elements, here = math.prod(tensor.shape), tensor.values.numel()
        if not tensor.shard_elements:
            return Place(name, tensor.values.view(tensor.shape), tensor.shape, replica=tensor.replica)
        shard = Shard(ranges=((tensor.start, tensor.start + here),))
        num_shards = max(1, num_elements // tensor.shard_elements)
        group = f"FSDP {tensor.num_processes}"
        return Place(name, tensor.values, tensor.shape, shard, tensor.replica, num_shards, group)


def tensors_of(model: Any) -> Iterator[tuple[Any, Any]] | None:
    """The named parameters of a module, those of FSDP1 as FlatParts under their own names, with `use_orig_params` or
    without, gathered or not; None where there is no FSDP1 in it."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if fsdp is None or not callable(getattr(model, "named_modules", None)):
        return None
    wrappers = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, fsdp)]
    return _tensors(model, wrappers) if wrappers else None


def _tensors(model: Any, wrappers: list[tuple[str, Any]]) -> Iterator[tuple[Any, Any]]:
    flats = [(prefix, module, module._handle) for prefix, module in wrappers if module._handle is not None]
    held = {id(handle.flat_param) for _, _, handle in flats}
    for flat in (handle.flat_param for _, _, handle in flats):
        held |= {id(tensor) for tensor in (*(flat._params or ()), *(flat._shared_params or ()))}
    yield from (found for found in model.named_parameters(remove_duplicate=False) if id(found[1]) not in held)
    for prefix, module, handle in flats:
        for name, part in _parts(module, handle):
            yield f"{prefix}.{name}" if prefix else name, part


def _parts(module: Any, handle: Any) -> Iterator[tuple[str, FlatPart]]:
    flat = handle.flat_param
    # What the optimizer writes to, in full precision, also while the flat parameter itself is gathered.
    local = getattr(flat, "_local_shard", flat).detach()
    sharded, between = handle.uses_sharded_strategy, getattr(module, "_inter_node_pg", None)
    replica = handle.process_group.rank() if not sharded else 0 if between is None else between.rank()
    in_order = getattr(flat, "_contiguities", (True,) * len(flat._fqns))
    extensions = getattr(flat, "_param_extensions", None) or (None,) * len(flat._fqns)
    found: dict[tuple[int, str], FlatPart] = {}
    rows = zip(flat._fqns, flat._shapes, flat._shard_param_infos, flat._param_infos, in_order, extensions, strict=True)
    for name, shape, part, owner, is_in_order, extension in rows:
        at, size, start = 0, 0, 0
        if part.in_shard:
            at, size, start = part.offset_in_shard, part.numel_in_shard, part.intra_param_start_idx
        reason = None if is_in_order else "flattened by FSDP in another order than its rows'"
        reason = reason if extension is None else "flattened by FSDP from a DTensor"
        values, shard_elements = local[at : at + size], local.numel() if sharded else 0
        found[id(owner.module), owner.param_name] = FlatPart(
            values, tuple(shape), start, shard_elements, replica, handle.world_size, reason
        )
        yield name, found[id(owner.module), owner.param_name]
    for tied in flat._shared_param_infos:  # the same object: it is tied here, whether there is a part of it or not
        name = f"{tied.module_name}.{tied.param_name}" if tied.module_name else tied.param_name
        yield name, found[id(tied.prim_module), tied.prim_param_name]
