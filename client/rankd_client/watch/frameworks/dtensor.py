"""DTensors: tensor parallel, FSDP2, and meshes of both. From a process's own metadata alone, with no collective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from rankd_client.watch.frameworks.cut import Cut, Intervals, strided_chunk
from rankd_client.watch.place import Place
from rankd_client.wire import Shard

STAGES = ("pp", "pipe", "stage")
"""What the dimension of a mesh along which processes hold other layers is called, or begins with."""

MAX_PARTS = 1024
"""Of one tensor, that are looked at for what this process has none of: some 10 ms, once for each shape."""

Spread = tuple[Cut, Shard, int, int, str]


class DTensorAdapter:
    def place(self, name: str, tensor: Any) -> Place | str | None:
        if not is_dtensor(tensor):
            return None
        mesh, shape, local = tensor.device_mesh, tuple(tensor.shape), tensor._local_tensor
        if mesh.get_coordinate() is None:
            return "sharded over other processes"
        found = _spread(mesh, tuple(tensor.placements), shape)
        if isinstance(found, str):
            return found
        cut, shard, replica, num_shards, group = found
        if hasattr(local, "wait"):
            return "sharded (DTensor whose values are still on their way)"
        if local.numel() != cut.num_elements:
            return "sharded (DTensor whose part is not what its placements say)"
        return Place(name, cut.view(local) if local.numel() else local, shape, shard, replica, num_shards, group)


def is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements") and hasattr(tensor, "_local_tensor")


@lru_cache(maxsize=1024)
def _spread(mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...]) -> Spread | str:
    """Of a tensor, what this process holds, the rectangles of that, which replica it is, how often the largest part of
    any process goes into the whole, and who has the rest; or why that cannot be said."""
    for placement in placements:
        if placement.is_partial():
            return "sharded (DTensor of partial sums)"
        if not placement.is_replicate() and type(placement).__name__ not in ("Shard", "_StridedShard"):
            return f"sharded (DTensor, {type(placement).__name__})"
    if len(shape) < 2:
        return "fewer than 2 dimensions"
    if 0 in shape:
        return "empty"
    sizes = [mesh.size(dim) for dim in range(len(placements))]
    coordinate = list(mesh.get_coordinate())
    cut, largest = (_cut(shape, placements, sizes, at) for at in (coordinate, [0] * len(sizes)))
    shard = cut.shard()
    if shard is None or any(_cut(shape, placements, sizes, at).too_many for at in _coordinates(placements, sizes)):
        return "sharded (DTensor cut into too many pieces)"
    replica, is_cut = 0, False
    for at, size in _beside(mesh):
        replica = replica * size + at
    for at, size, placement in zip(coordinate, sizes, placements, strict=True):
        if placement.is_replicate():
            replica = replica * size + at
        else:
            is_cut |= size > 1
    group = "×".join(mesh.mesh_dim_names or map(str, sizes)) if is_cut else ""
    return cut, shard if is_cut else Shard(), replica, math.prod(shape) // largest.num_elements, group


def _cut(shape: tuple[int, ...], placements: tuple[Any, ...], sizes: list[int], coordinate: Sequence[int]) -> Cut:
    kept: list[Intervals] = [((0, size),) for size in shape]
    for placement, size, at in zip(placements, sizes, coordinate, strict=True):
        if placement.is_replicate():
            continue
        dim, num_blocks = placement.dim, getattr(placement, "split_factor", 1)
        kept[dim] = strided_chunk(kept[dim], int(num_blocks), size, at)
    return Cut(shape, tuple(kept))


def _coordinates(placements: tuple[Any, ...], sizes: list[int]) -> Iterable[tuple[int, ...]]:
    """Of all different parts, since all processes must skip the same layers; of the largest alone where that would take
    long."""
    numbers = [range(1 if at.is_replicate() else size) for at, size in zip(placements, sizes, strict=True)]
    return product(*numbers) if math.prod(map(len, numbers)) <= MAX_PARTS else [(0,) * len(sizes)]


def _beside(mesh: Any) -> list[tuple[int, int]]:
    """Coordinate and size along the dimensions of the job's mesh that this mesh is one slice of: processes there hold
    copies, but for those of a pipeline's stages, which hold other layers."""
    import torch

    root = _root_of(mesh)
    if root is None or root.mesh.numel() == mesh.mesh.numel():
        return []
    coordinate = root.get_coordinate()
    if coordinate is None:
        return []
    members = torch.isin(root.mesh, mesh.mesh).nonzero()  # a row of coordinates each
    names = root.mesh_dim_names or [""] * root.mesh.dim()
    return [
        (at, size)
        for at, size, name, inside in zip(coordinate, root.mesh.shape, names, members.T, strict=True)
        if bool((inside == inside[0]).all()) and size > 1 and not name.lower().startswith(STAGES)
    ]


def _root_of(mesh: Any) -> Any:
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    from torch.distributed import device_mesh

    resources = getattr(device_mesh, "_mesh_resources", None)
    for question in ("get_root_mesh", "get_parent_mesh"):  # before torch 2.7, before torch 2.6
        if resources is not None and hasattr(resources, question):
            return getattr(resources, question)(mesh)
    return None
