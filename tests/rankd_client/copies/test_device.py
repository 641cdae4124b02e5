"""Copies of what lies on a GPU: right, whole when they say so, and not waited for by the host."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch

from rankd_client.arena import Arena, Region
from rankd_client.copies import allocate, quiet_torch
from rankd_client.copies.device import MAX_STAGING_BYTES, DeviceCopier, HalfTicket, Ticket
from rankd_client.copies.host import copy
from rankd_client.lots import Layout, Lot
from rankd_client.watch import Selection, watch
from rankd_client.wire import row_elements

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PATIENCE_SECONDS = 20.0
SCALED = ("int8", "float8_e4m3fn", "float8_e5m2")
SHAPES = ((64, 96), (768, 33), (1, 7), (3000, 4000), (5, 4, 3, 2))


@pytest.fixture
def copier() -> DeviceCopier:
    return DeviceCopier(torch.device("cuda", torch.cuda.current_device()))


def arena_of(num_bytes: int) -> Arena:
    arena = Arena(num_bytes, lambda size: allocate(size, pinned=True))
    arena.grow(num_bytes)
    return arena


def wait(tickets: list[Ticket | HalfTicket | Exception]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    for ticket in tickets:
        assert not isinstance(ticket, Exception), ticket
        while not ticket.done:
            assert time.monotonic() < until


def copied(copier: DeviceCopier, model: dict[str, torch.Tensor], dtype: str) -> list[tuple[str, bytes]]:
    """Of each tensor the dtype in which it came, and its bytes."""
    items, skipped = watch(model, Selection(dtype))
    assert not skipped
    arena = arena_of(sum(item.num_bytes + 64 for item in items))
    regions = [arena.reserve(item.num_bytes) for item in items]
    targets = [(item, region) for item, region in zip(items, regions, strict=True) if region is not None]
    assert len(targets) == len(items)
    with quiet_torch():
        tickets = copier.copy(targets)
    wait(tickets)
    dtypes = [getattr(ticket, "dtype", None) or item.dtype for ticket, item in zip(tickets, items, strict=True)]
    return [(name, bytes(region.view)) for name, (_, region) in zip(dtypes, targets, strict=True)]


def copied_on_the_host(model: dict[str, torch.Tensor], dtype: str) -> list[tuple[str, bytes]]:
    items, _ = watch({name: tensor.cpu() for name, tensor in model.items()}, Selection(dtype))
    arena = arena_of(sum(item.num_bytes + 64 for item in items))
    found = []
    for item in items:
        region = arena.reserve(item.num_bytes)
        assert region is not None
        with quiet_torch():
            found.append((copy(item, region), bytes(region.view)))
    return found


def split(data: bytes, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Elements and scales."""
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, width + 4)
    return rows[:, :width], rows[:, width:].flatten().clone().view(torch.float32)[:, None]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16", "float64", "int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_copy_that_the_cpu_makes(copier: DeviceCopier, dtype: str, source: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    model = {f"w{i}": torch.randn(s, device="cuda", generator=generator).to(source) for i, s in enumerate(SHAPES)}
    model["huge"] = torch.full((8, 8), 6e4 if source is torch.float16 else 1e6, device="cuda", dtype=source)
    model["tiny"] = torch.full((8, 8), 1e-9, device="cuda", dtype=source)
    model["nan"] = torch.full((8, 8), torch.nan, device="cuda", dtype=source)
    model["strided"] = model["w0"].t()[::2]
    model["image"] = torch.randn(9, 5, 4, 3, device="cuda").to(source).contiguous(memory_format=torch.channels_last)
    got, wanted = copied(copier, model, dtype), copied_on_the_host(model, dtype)
    for layer, (name, ours), (wanted_name, theirs) in zip(model, got, wanted, strict=True):
        assert name == wanted_name
        if layer == "nan":  # which has many forms
            values = torch.frombuffer(bytearray(ours), dtype=torch.uint8)
            assert name in SCALED or bool(values.view(getattr(torch, name)).isnan().all())
        elif name in SCALED:  # where a GPU divides by a constant, it multiplies: scales may differ in their last bit
            width = row_elements(tuple(model[layer].shape))
            (data, scales), (their_data, their_scales) = split(ours, width), split(theirs, width)
            assert torch.allclose(scales, their_scales, rtol=1e-6, atol=0.0)
            assert int((data != their_data).sum()) <= 1 + data.numel() / 50
        else:
            assert ours == theirs


def test_larger_than_the_staging_piece_and_strided(copier: DeviceCopier) -> None:
    rows = MAX_STAGING_BYTES // 2 // 1000 * 3
    big = torch.randn(rows, 1001, device="cuda")
    for tensor in (big, big.t(), big[:, 1:], big.view(3, -1, 1001).transpose(0, 2)):
        ((_, got),) = copied(copier, {"w": tensor}, "bfloat16")
        wanted = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy().tobytes()
        assert got == wanted


@pytest.mark.parametrize("dtype", SCALED)
def test_scaled_rows_in_pieces(copier: DeviceCopier, dtype: str) -> None:
    tensor = torch.randn(3, 4000, 2500, device="cuda")
    ((name, got),) = copied(copier, {"w": tensor}, dtype)
    ((_, wanted),) = copied_on_the_host({"w": tensor}, dtype)
    (data, scales), (their_data, their_scales) = split(got, 2500), split(wanted, 2500)
    assert name == dtype and torch.allclose(scales, their_scales, rtol=1e-6, atol=0.0)
    assert int((data != their_data).sum()) <= data.numel() / 50


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_host_is_not_waited_for_and_nothing_is_allocated_anew(copier: DeviceCopier, dtype: str) -> None:
    items, _ = watch({f"w{i}": torch.randn(s, device="cuda") for i, s in enumerate(SHAPES)}, Selection(dtype))
    arena = arena_of(sum(item.num_bytes + 64 for item in items))
    targets: list[Any] = [(item, arena.reserve(item.num_bytes)) for item in items]
    for again in (False, True):
        wait(copier.copy(targets, again))
    busy = torch.randn(8192, 8192, device="cuda") @ torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for again in (False, True):
        for _ in range(20):
            torch.mm(busy, busy, out=busy.clone())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is a prototype
                torch.cuda.set_sync_debug_mode("error")  # whatever makes the host wait raises
            tickets = copier.copy(targets, again)
            copier.wait()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not any(ticket.done for ticket in tickets if not isinstance(ticket, Exception))
        wait(tickets)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before


def test_the_same_again_is_the_same_with_new_values(copier: DeviceCopier) -> None:
    weights = {f"w{i}": torch.randn(s, device="cuda") for i, s in enumerate(SHAPES)}
    items, _ = watch(weights, Selection())
    arena = arena_of(2 * sum(item.num_bytes + 64 for item in items))
    layouts = [[(item, arena.reserve(item.num_bytes)) for item in items] for _ in range(2)]
    for turn in range(6):
        for weight in weights.values():
            weight.fill_(float(turn))
        targets: list[Any] = layouts[turn % 2]
        wait(copier.copy(targets, again=turn > 0))
        for _, region in targets:
            values = torch.frombuffer(bytearray(region.view), dtype=torch.bfloat16)
            assert set(values.tolist()) == {float(turn)}


def test_what_is_freed_after_the_push_is_copied_all_the_same(copier: DeviceCopier) -> None:
    busy = torch.randn(4096, 4096, device="cuda")
    feature = torch.full((2048, 2048), 3.0, device="cuda")
    ((item,), _) = watch({"f": feature}, Selection())
    region: Region | None = arena_of(item.num_bytes).reserve(item.num_bytes)
    assert region is not None
    for _ in range(50):
        busy = busy @ busy
    tickets = copier.copy([(item, region)])
    copier.wait()
    del item, feature
    others = [torch.full((2048, 2048), 5.0, device="cuda") for _ in range(20)]
    wait(tickets)
    values = torch.frombuffer(bytearray(region.view), dtype=torch.bfloat16)
    assert others and bool((values == 3.0).all())


def test_without_the_wait_the_copy_would_be_of_what_comes_after(copier: DeviceCopier) -> None:
    """The wait is what keeps a snapshot whole: this is the same copy with and without it."""
    weight = torch.zeros(MAX_STAGING_BYTES // 4, 4, device="cuda")  # four pieces
    ((item,), _) = watch({"w": weight}, Selection("float32"))
    region = arena_of(item.num_bytes).reserve(item.num_bytes)
    assert region is not None
    seen = {}
    for waits in (True, False):
        weight.fill_(1.0)
        torch.cuda.synchronize()
        tickets = copier.copy([(item, region)])
        if waits:
            copier.wait()
        weight.fill_(2.0)
        wait(tickets)
        seen[waits] = set(torch.frombuffer(bytearray(region.view), dtype=torch.float32).unique().tolist())
    assert seen[True] == {1.0}
    assert 2.0 in seen[False]


@pytest.mark.parametrize("dtype", SCALED)
def test_a_scaled_lot_is_the_same_as_one_by_one(copier: DeviceCopier, dtype: str) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    weights = {f"w{i}": torch.randn(768, n, device="cuda", generator=generator) for i, n in enumerate((96, 40, 96, 3))}
    items, _ = watch(weights, Selection(dtype))
    layout = Layout(items)
    arena = arena_of(3 * layout.num_bytes)
    regions = [region for item in items if (region := arena.reserve(item.num_bytes)) is not None]
    wait(copier.copy(list(zip(items, regions, strict=True)), again=True))
    assert copier.knows(layout.ids)
    whole = arena.reserve(layout.num_bytes)
    assert whole is not None
    wait([copier.copy_lot(Lot(layout, 1, whole, 0))])
    for alone, region in zip(regions, layout.regions(whole), strict=True):
        assert bytes(alone.view) == bytes(region.view)


def test_a_lot_is_the_same_as_one_by_one(copier: DeviceCopier) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    model = {f"w{i}": torch.randn(s, device="cuda", generator=generator) for i, s in enumerate(SHAPES)}
    model["strided"] = model["w0"].t()[::2]
    model["large"] = torch.randn(copier.device_bytes // 2 + 3_000, 2, device="cuda", generator=generator)
    items, _ = watch(model, Selection("bfloat16"))
    layout = Layout(items)
    arena = arena_of(3 * layout.num_bytes)
    assert not copier.knows(layout.ids)
    regions = [region for item in items if (region := arena.reserve(item.num_bytes)) is not None]
    wait(copier.copy(list(zip(items, regions, strict=True)), again=True))
    assert copier.knows(layout.ids)
    for turn, spare in enumerate((0, 64, 0)):  # in two places, in one of them twice
        with torch.no_grad():
            for tensor in model.values():
                tensor.mul_(-1 - turn)
        whole = arena.reserve(layout.num_bytes) if spare == 0 else arena.reserve(layout.num_bytes + spare)
        assert whole is not None
        with quiet_torch():
            ticket = copier.copy_lot(Lot(layout, turn, whole, 0))
        wait([ticket])
        wanted = copied_on_the_host(model, "bfloat16")
        for region, (_, data) in zip(layout.regions(whole), wanted, strict=True):
            assert bytes(region.view) == data
        arena.release(whole)
