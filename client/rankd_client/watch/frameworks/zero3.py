"""DeepSpeed's ZeRO-3: each parameter is cut flat, into parts of one size, the last ones padded. Read off the attributes
that DeepSpeed gives to a parameter."""

from __future__ import annotations

from typing import Any

from rankd_client.watch.place import Place
from rankd_client.wire import Shard


class Zero3Adapter:
    """Takes the part that the optimizer keeps, whether the parameter is gathered or not."""

    def place(self, name: str, tensor: Any) -> Place | str | None:
        if not hasattr(tensor, "ds_tensor") or not hasattr(tensor, "ds_shape"):
            return None
        part = tensor.ds_tensor
        if part is None or getattr(getattr(part, "status", None), "name", "AVAILABLE") != "AVAILABLE":
            return "swapped out (ZeRO-3)"
        if hasattr(tensor, "comm"):
            return "sharded in groups (MiCS)"
        num_elements, part_elements = int(tensor.ds_numel), int(part.ds_numel)
        start = part_elements * int(tensor.ds_zero_partition_rank)
        here = max(0, min(part_elements, num_elements - start))
        shard = Shard(ranges=((start, start + here),))
        num_shards, group = max(1, num_elements // part_elements), f"ZeRO {tensor.ds_zero_partition_world_size}"
        return Place(name, part.detach()[:here], tuple(tensor.ds_shape), shard, 0, num_shards, group)
