"""Many tensors rounded at once are the same as each by itself; a staging piece works on the CPU too."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from scaled_rows import SCALED

from rankd_client.arena import Arena, Region
from rankd_client.copies import allocate, copy, quiet_torch
from rankd_client.copies.memory import bytes_of
from rankd_client.copies.recipes import Recipes, goes_with_others
from rankd_client.copies.scaled import copy_scaled
from rankd_client.lots import Layout
from rankd_client.watch import Selection, Watched, watch
from rankd_client.wire import DTYPES, SCALE_BYTES, row_elements

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])

STAGING_BYTES = 16 << 10
SHAPES = ((3, 70), (50, 70), (20, 40), (1, 70), (2, 20, 70), (90, 70), (9, 3), (60, 40), (4, 1))
"""Of two widths, some with more rows than go at once; and one whose rows are too short for a scale."""


def watched(dtype: str, source: torch.dtype, device: str = "cpu") -> list[Watched]:
    generator = torch.Generator().manual_seed(4)
    model = {f"w{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(SHAPES)}
    model["w1"][7, 3] = math.nan
    items, skipped = watch({name: values.to(device, source) for name, values in model.items()}, Selection(dtype))
    assert not skipped and len({item.dtype for item in items}) == 2
    return items


def whole_of(layout: Layout) -> Region:
    arena = Arena(layout.num_bytes, allocate)
    arena.grow(layout.num_bytes)
    whole = arena.reserve(layout.num_bytes)
    assert whole is not None
    whole.view[:] = b"\xee" * layout.num_bytes
    return whole


def check(item: Watched, region: Region, staging: torch.Tensor) -> None:
    """Against the copy of this one alone, on the same device."""
    layout = Layout([item])
    (alone,) = layout.regions(whole_of(layout))
    if not DTYPES[item.dtype].scaled:
        with quiet_torch():
            copy(item, alone)
        assert bytes(region.view) == bytes(alone.view)
        return
    width = row_elements(item.shape)
    rows, wanted = (bytes_of(of).view(-1, width + SCALE_BYTES) for of in (region, alone))
    copy_scaled(item.dtype, item.tensor, wanted, staging)
    assert torch.equal(rows[:, :width], wanted[:, :width])
    scales, their_scales = (of[:, width:].flatten().clone().view(torch.float32) for of in (rows, wanted))
    assert torch.allclose(scales, their_scales, rtol=0.0, atol=0.0, equal_nan=True)  # NaN has many forms


@devices
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", SCALED)
def test_each_is_rounded_as_by_itself_and_again_with_new_values(dtype: str, source: torch.dtype, device: str) -> None:
    items, staging = watched(dtype, source, device), torch.empty(STAGING_BYTES, dtype=torch.uint8, device=device)
    layout = Layout(items)
    recipes = Recipes(staging, dict(enumerate(items)))
    whole = whole_of(layout)
    regions = layout.regions(whole)
    for turn in range(3):
        keeps: list[object] = []
        if turn < 2:
            recipes.follow(regions, keeps)
        else:
            recipes.follow_side_by_side(whole, regions, keeps)
        if device == "cuda":
            torch.cuda.synchronize()
        for item, region in zip(items, regions, strict=True):
            check(item, region, staging)
            item.tensor.mul_(-3)


def test_numbers_that_are_left_out_are_left_alone() -> None:
    items, staging = watched("int8", torch.float32), torch.empty(STAGING_BYTES, dtype=torch.uint8)
    layout = Layout(items)
    regions = layout.regions(whole_of(layout))
    chosen = {index: item for index, item in enumerate(items) if index % 2}
    Recipes(staging, chosen).follow(regions, [])
    for index, region in enumerate(regions):
        if index in chosen:
            check(items[index], region, staging)
        else:
            assert set(region.view) == {0xEE}


def test_memory_that_a_model_has_left_lives_until_it_is_copied() -> None:
    items = watched("int8", torch.float32)
    recipes = Recipes(torch.empty(STAGING_BYTES, dtype=torch.uint8), dict(enumerate(items)))
    layout = Layout(items)
    left, keeps = [], list[object]()
    for item in items:
        array = item.tensor.clone().numpy()
        item.tensor.data = torch.from_numpy(array)  # which keeps the array alive
        left.append(weakref.ref(array))
        del array
    recipes.follow(layout.regions(whole_of(layout)), keeps)
    for item in items:
        item.tensor.data = torch.zeros(1)
    assert any(reference() is not None for reference in left)
    keeps.clear()
    assert all(reference() is None for reference in left)


def test_what_cannot_go_with_others() -> None:
    staging = torch.empty(4096, dtype=torch.uint8)
    assert goes_with_others(torch.ones(3, 500), 500, staging)
    assert not goes_with_others(torch.ones(3, 800), 800, staging), "no room for a row"
    assert not goes_with_others(torch.ones(500, 3).t(), 500, staging), "in columns"
    assert not goes_with_others(torch.ones(3, 500, dtype=torch.float64), 500, staging), "more than float32 holds"
