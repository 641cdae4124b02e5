"""Which part of which matrix a process of a job holds: what adapters tell of a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rankd_client.wire import Shard

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in the model as the whole job sees it.

    `tensor` has this process's elements, plain (no DTensor), as many as `shard` says of the whole `shape` and in its
    order; `shard` without pieces: it is the whole. `replica` counts the processes that hold the same elements: 0 pushes
    them. None: every process of the job holds them, and process 0 pushes. `num_shards` is how many parts the whole
    is cut into, the same number in every process.
    """

    name: str
    tensor: torch.Tensor = field(repr=False)
    shape: tuple[int, ...]
    shard: Shard = field(default_factory=Shard)
    replica: int | None = None
    num_shards: int = 1


class Adapter(Protocol):
    """Knows a framework's way to spread a model over processes. Calls no collective, and waits for nobody."""

    def place(self, name: str, tensor: Any) -> Place | str | None:
        """The place of a parameter that this process calls `name`; a reason to skip it; None: not one of mine."""
        ...
