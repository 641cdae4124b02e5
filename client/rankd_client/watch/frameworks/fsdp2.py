"""FSDP2 (`fully_shard`): its parameters are DTensors between steps, and gathered ones within forward and backward."""

from __future__ import annotations

import sys
from typing import Any

from rankd_client.watch.frameworks.dtensor import DTensorAdapter
from rankd_client.watch.place import Place

GATHERED = ("_unsharded_param", "_sharded_post_forward_param")
"""What an FSDP2 parameter puts into the model in the place of `sharded_param`, as long as it is gathered."""


class Fsdp2Adapter:
    """Takes the shard that the optimizer keeps, whatever the model shows now: gathered parameters are copies, of the
    dtype to compute in, and other processes may have given theirs up already."""

    def __init__(self, sharded: dict[int, Any]) -> None:
        self._sharded = sharded
        self._dtensors = DTensorAdapter()

    @classmethod
    def of(cls, model: Any) -> Fsdp2Adapter | None:
        """None where nothing of `model` is gathered."""
        fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
        if fsdp is None or not callable(getattr(model, "modules", None)):
            return None
        sharded: dict[int, Any] = {}
        for module in model.modules():
            if isinstance(module, fsdp):
                state = module._get_fsdp_state()
                groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
                for parameter in (held for group in groups if group is not None for held in group.fsdp_params):
                    for gathered in GATHERED:
                        if (shown := getattr(parameter, gathered, None)) is not None:
                            sharded[id(shown)] = parameter.sharded_param
        return cls(sharded) if sharded else None

    def place(self, name: str, tensor: Any) -> Place | str | None:
        shard = self._sharded.get(id(tensor))
        return None if shard is None else self._dtensors.place(name, shard)
