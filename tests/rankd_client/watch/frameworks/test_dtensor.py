"""DTensors of every process of a job, one after the other, in a process group that sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from rankd_client.watch import Selection, Watched, Watcher, watch
from rankd_client.watch.also import watch_also
from rankd_client.watch.frameworks.dtensor import DTensorAdapter, _spread
from rankd_client.watch.place import Place


@contextmanager
def process(process_rank: int, world_size: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=process_rank, world_size=world_size)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        dist.destroy_process_group()
        _spread.cache_clear()


def places(world_size: int, shape: tuple[int, ...], mesh_shape: tuple[int, ...], cuts: Any, names: Any = None) -> Any:
    """What each process says of a tensor that counts 0, 1, 2, …"""
    full = torch.arange(float(torch.Size(shape).numel())).view(shape)
    found = []
    for number in range(world_size):
        with process(number, world_size), torch.no_grad():
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
            if names is not None and len(cuts) < len(mesh_shape):
                mesh = mesh[names[-1]]
            found.append(DTensorAdapter().place("w", distribute_tensor(full, mesh, cuts, src_data_rank=None)))
    return found


def joined(places: list[Place]) -> torch.Tensor:
    """What a daemon makes of the parts of replica 0; NaN where there is none."""
    shape = places[0].shape
    matrix = torch.full((shape[0], torch.Size(shape[1:]).numel()), torch.nan)
    for place in (place for place in places if place.replica == 0):
        at, values = 0, place.tensor.reshape(-1)
        if place.shard.whole:
            matrix[:] = values.view_as(matrix)
        for r0, r1, c0, c1 in place.shard.rectangles:
            size = (r1 - r0) * (c1 - c0)
            assert torch.isnan(matrix[r0:r1, c0:c1]).all()
            matrix[r0:r1, c0:c1] = values[at : at + size].view(r1 - r0, c1 - c0)
            at += size
    return matrix


@pytest.mark.parametrize(
    ("shape", "mesh", "cuts"),
    [
        ((7, 4), (4,), [Shard(0)]),
        ((3, 4), (4,), [Shard(0)]),  # the last process has nothing
        ((4, 7), (4,), [Shard(1)]),
        ((4, 5, 6), (4,), [Shard(1)]),
        ((4, 5, 6), (4,), [Shard(2)]),
        ((2, 3, 4, 5), (2, 2), [Shard(2), Shard(3)]),
        ((9, 8), (2, 2), [Shard(0), Shard(0)]),
        ((9, 8), (2, 2), [Shard(0), Shard(1)]),
        ((6, 8), (2, 2), [Replicate(), Shard(1)]),
        ((6, 8), (2, 2), [Shard(0), Replicate()]),
        ((6, 8), (2, 2), [Replicate(), Replicate()]),
    ],
    ids=str,
)
def test_replica_0_has_each_element_once(shape: tuple[int, ...], mesh: tuple[int, ...], cuts: Any) -> None:
    found = places(4, shape, mesh, cuts)
    assert torch.equal(joined(found).flatten(), torch.arange(float(torch.Size(shape).numel())))
    num_replicas = torch.tensor([n for n, cut in zip(mesh, cuts, strict=True) if cut.is_replicate()]).prod()
    assert sorted(place.replica for place in found) == sorted(list(range(int(num_replicas))) * (4 // int(num_replicas)))
    assert len({(place.num_shards, place.group) for place in found}) == 1
    largest = max(place.tensor.numel() for place in found)
    assert torch.Size(shape).numel() // found[0].num_shards >= largest  # a turn has room for it


def test_a_slice_of_the_jobs_mesh_has_copies_beside_it_and_a_pipelines_stages_have_not() -> None:
    data = places(4, (4, 4), (2, 2), [Shard(0)], ("dp", "tp"))
    assert [place.replica for place in data] == [0, 0, 1, 1]
    stages = places(4, (4, 4), (2, 2), [Shard(0)], ("pp", "tp"))
    assert [place.replica for place in stages] == [0, 0, 0, 0]
    assert {place.group for place in stages} == {"tp"}


def test_what_cannot_be_placed_says_why() -> None:
    with process(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        local = torch.ones(2, 2)
        model = {
            "sums": DTensor.from_local(local, mesh, [Partial()], run_check=False),
            "vector": DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False),
            "none": DTensor.from_local(torch.ones(0, 2), mesh, [Shard(0)], run_check=False),
            "pieces": DTensor.from_local(torch.ones(2, 600, 2), mesh, [Shard(2)], run_check=False),
            "many": DTensor.from_local(torch.ones(2, 1100, 2), mesh, [Shard(2)], run_check=False),
            "ok": DTensor.from_local(local, mesh, [Shard(0)], run_check=False),
        }
        watched, skipped = watch(model, Selection())
    assert [item.name for item in watched] == ["pieces", "ok"]
    assert skipped == {
        "sums": "sharded (DTensor of partial sums)",
        "vector": "fewer than 2 dimensions",
        "none": "empty",
        "many": "sharded (DTensor cut into too many pieces)",
    }


def test_what_is_in_too_many_pieces_in_one_process_is_skipped_by_all() -> None:
    """Of 2,049 blocks two processes have 1,025, more than a shard may have, and two 1,024."""
    assert {str(place) for place in places(4, (1, 2049, 2), (2, 2), [Shard(1), Shard(2)])} == {
        "sharded (DTensor cut into too many pieces)"
    }
    assert all(isinstance(place, Place) for place in places(4, (1, 2047, 2), (2, 2), [Shard(1), Shard(2)]))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_all_processes_reckon_with_the_same_bytes(dtype: str) -> None:
    """Also the ones that hold nothing; and a scale for each row is for those who hold whole rows."""
    items: list[list[Watched]] = []
    for number in range(4):
        with process(number, 4), torch.no_grad():
            mesh = init_device_mesh("cpu", (4,))
            full = torch.randn(3, 64)
            model = {str(dim): distribute_tensor(full, mesh, [Shard(dim)], src_data_rank=None) for dim in (0, 1)}
            items.append(watch(model, Selection(dtype))[0])
    assert [[item.name for item in each] for each in items] == [["0", "1"]] * 4
    for rows, columns in items:
        assert (rows.turn_bytes, rows.dtype) == (items[0][0].turn_bytes, dtype)
        assert (columns.turn_bytes, columns.dtype) == (items[0][1].turn_bytes, "bfloat16")
        assert rows.num_bytes <= rows.turn_bytes and columns.num_bytes <= columns.turn_bytes
    assert [each[0].num_bytes == 0 for each in items] == [False, False, False, True]


def test_what_has_not_moved_is_not_looked_at_again() -> None:
    with process(0, 2), torch.no_grad():
        mesh = init_device_mesh("cpu", (2,))
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(DTensor.from_local(torch.ones(2, 4), mesh, [Shard(0)], run_check=False))
        watcher = Watcher(Selection())
        (first,), _ = watcher.look(model)
        (again,), _ = watcher.look(model)
        assert watcher.again and again is first and first.shape == (4, 4)
        model.w._local_tensor = torch.zeros(2, 4)
        (moved,), _ = watcher.look(model)
        assert not watcher.again and torch.equal(moved.values(), torch.zeros(2, 4))
        model.w = torch.nn.Parameter(DTensor.from_local(torch.ones(2, 4), mesh, [Replicate()], run_check=False))
        assert watcher.look(model)[0][0].shard.whole


def test_a_gradient_is_sharded_as_its_weight() -> None:
    with process(1, 2), torch.no_grad():
        mesh = init_device_mesh("cpu", (2,))
        gradient = DTensor.from_local(torch.ones(2, 4), mesh, [Shard(0)], run_check=False)
        items, skipped = watch_also({"w": ("gradient", gradient), "f": gradient}, Selection())
    assert not skipped and {item.role for item in items} == {"gradient", "feature"}
    assert all((item.shape, item.shard.rectangles) == ((4, 4), ((2, 4, 0, 4),)) for item in items)
