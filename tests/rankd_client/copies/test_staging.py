"""The staging piece: it is the same on the CPU, where nothing is pinned and nothing goes on by itself."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch

from rankd_client.arena import Arena, Region
from rankd_client.copies import allocate
from rankd_client.copies.staging import Recipe
from rankd_client.lots import Layout
from rankd_client.watch import Selection, watch

STAGING_BYTES = 4096
SHAPES = ((16, 16), (3, 5), (300, 64), (7, 7), (2, 1500), (1, 1), (40, 40))
"""Some larger than the staging piece, in float32 and in bfloat16."""


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    found.append(torch.nn.Parameter(torch.randn(90, 60, generator=generator).t()))  # in columns
    return [*found, torch.nn.Parameter(torch.randn(8, 8, generator=generator).double())]


def regions_of(sources: Sequence[torch.Tensor], itemsize: int) -> list[Region]:
    sizes = [source.numel() * itemsize for source in sources]
    arena = Arena(sum(size + 64 for size in sizes), allocate)
    arena.grow(sum(size + 64 for size in sizes))
    regions = [region for size in sizes if (region := arena.reserve(size)) is not None]
    assert len(regions) == len(sizes)
    return regions


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16", "float64"])
def test_each_tensor_arrives_whole_and_again_with_new_values(dtype: str) -> None:
    sources = parameters()
    recipe = Recipe(torch.empty(STAGING_BYTES, dtype=torch.uint8), [(dtype, source) for source in sources])
    as_dtype: torch.dtype = getattr(torch, dtype)
    for _ in range(2):
        regions = regions_of(sources, as_dtype.itemsize)
        recipe.follow(regions, [])
        for source, region in zip(sources, regions, strict=True):
            wanted = source.detach().to(as_dtype).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert bytes(region.view) == wanted
        with torch.no_grad():
            for source in sources:
                source.mul_(-3)
    assert all(source.requires_grad and source.grad_fn is None for source in sources)
    assert not recipe._staging.requires_grad


def test_memory_that_a_model_has_left_is_not_kept() -> None:
    """As by model.to("cpu"), which leaves each parameter the same object."""
    sources = parameters()
    recipe = Recipe(torch.empty(STAGING_BYTES, dtype=torch.uint8), [("bfloat16", source) for source in sources])
    recipe.follow(regions_of(sources, 2), [])
    left = []
    for source in sources:
        array = source.detach().clone().numpy()
        source.data = torch.from_numpy(array)  # which keeps the array alive
        left.append(weakref.ref(array))
        del array
    recipe = Recipe(torch.empty(STAGING_BYTES, dtype=torch.uint8), [("bfloat16", source) for source in sources])
    keeps: list[object] = []
    recipe.follow(regions_of(sources, 2), keeps)
    for source in sources:
        source.data = torch.zeros(1)
    assert all(reference() is not None for reference in left)  # on a GPU they are still being copied
    keeps.clear()
    assert all(reference() is None for reference in left)
    del recipe


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_lot_is_the_same_as_one_by_one(dtype: str) -> None:
    model = {f"w{place}": parameter for place, parameter in enumerate(parameters())}
    items, _ = watch(model, Selection(dtype))
    assert [item.tensor for item in items] == list(model.values())  # themselves, whose memory may be another one's soon
    layout = Layout(items)
    recipe = Recipe(torch.empty(STAGING_BYTES, dtype=torch.uint8), [(item.dtype, item.tensor) for item in items])
    arena = Arena(2 * layout.num_bytes, allocate)
    arena.grow(2 * layout.num_bytes)
    wholes = [whole for _ in range(2) if (whole := arena.reserve(layout.num_bytes)) is not None]
    assert len(wholes) == 2
    for whole in (*wholes, *wholes):
        regions = layout.regions(whole)
        recipe.follow_side_by_side(whole, regions, [])
        for item, region in zip(items, regions, strict=True):
            wanted = item.values().to(getattr(torch, dtype)).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert bytes(region.view) == wanted
        with torch.no_grad():
            for parameter in model.values():
                parameter.mul_(-3)
