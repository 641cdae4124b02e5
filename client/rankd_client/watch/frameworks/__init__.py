"""How the frameworks that are loaded spread a model over processes: what they tell of each parameter, with nothing
gathered and nobody asked. None of them is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rankd_client.watch.frameworks.dtensor import DTensorAdapter
from rankd_client.watch.frameworks.fsdp1 import Fsdp1Adapter, tensors_of
from rankd_client.watch.frameworks.fsdp2 import Fsdp2Adapter
from rankd_client.watch.frameworks.megatron import MegatronAdapter
from rankd_client.watch.frameworks.zero3 import Zero3Adapter
from rankd_client.watch.place import Adapter

__all__ = ["MegatronAdapter", "adapters_of", "tensors_of"]


def adapters_of(model: Any) -> Iterator[Adapter]:
    """Those that may know something of `model`'s parameters, in the order to ask them."""
    if (gathered := Fsdp2Adapter.of(model)) is not None:
        yield gathered
    if "torch.distributed.fsdp" in sys.modules:
        yield Fsdp1Adapter()
    if "torch.distributed.tensor" in sys.modules or "torch.distributed._tensor" in sys.modules:
        yield DTensorAdapter()
    if "deepspeed" in sys.modules:
        yield Zero3Adapter()
