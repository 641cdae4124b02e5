"""Copies with a scale per row, against a plain reference."""

from __future__ import annotations

import math
import random
import tracemalloc
from typing import Any

import pytest
import torch
from scaled_rows import LARGEST, SCALED, unpacked

from rankd_client.arena import Arena, Region
from rankd_client.copies import allocate, copy, quiet_torch, scaled
from rankd_client.watch import Selection, Watched, watch
from rankd_client.wire import SCALE_BYTES, row_elements

SOURCES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])


def prepared(tensor: torch.Tensor, dtype: str) -> tuple[Watched, Region]:
    (item,), _ = watch({"w": tensor}, Selection(dtype))
    arena = Arena(64 << 20, allocate)
    arena.grow(item.num_bytes)
    region = arena.reserve(item.num_bytes)
    assert region is not None
    region.view[:] = b"\xee" * item.num_bytes
    return item, region


def copied(tensor: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What travels: the values that stand there, in the tensor's shape, and the scales of its rows."""
    item, region = prepared(tensor, dtype)
    with quiet_torch():
        name = copy(item, region)
    assert (name, item.dtype) == (dtype, dtype)
    width = row_elements(item.shape)
    assert item.num_bytes == tensor.numel() // width * (width + SCALE_BYTES)
    rows = torch.frombuffer(bytearray(region.view), dtype=torch.uint8).view(-1, width + SCALE_BYTES)
    return unpacked(region.view, dtype, item.shape), rows[:, width:].clone().view(torch.float32)[:, 0]


def half_steps(dtype: str, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """How far rounding to nearest may be off: half a step of int8, or of a float8 in the element's binade; and what
    dividing and multiplying in float32 adds."""
    by_row = scales[:, None].double()
    if dtype == "int8":
        steps = torch.ones_like(values).double()
    else:
        bits, lowest = {"float8_e4m3fn": (3, -6), "float8_e5m2": (2, -14)}[dtype]
        exponents = torch.frexp(values / by_row).exponent - 1
        steps = torch.exp2(exponents.clamp(min=lowest).double() - bits)
    return steps * by_row / 2 + 1e-6 * values.abs() + scaled.SMALLEST


def check(weight: torch.Tensor, dtype: str) -> None:
    """Row by row: within half a step, and the scale is that of the largest magnitude."""
    found, scales = copied(weight, dtype)
    width = row_elements(tuple(weight.shape))
    plain, values = weight.cpu().double().reshape(-1, width), found.double().view(-1, width)
    assert ((values - plain).abs() <= half_steps(dtype, plain, scales)).all()
    peaks = plain.abs().amax(dim=1)
    wanted = torch.full_like(peaks, 0.0).addcdiv(peaks, torch.tensor(LARGEST[dtype]).double())
    assert torch.allclose(scales.double(), wanted, rtol=1e-6, atol=2 * scaled.SMALLEST)


@devices
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", SCALED)
def test_every_element_is_within_half_a_step(dtype: str, source: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 70, generator=generator, dtype=torch.float64)
    weight *= torch.logspace(-3, 3, 40, dtype=torch.float64)[:, None]
    weight[3], weight[5, 1:] = 0.0, 0.0
    check(weight.to(device, source), dtype)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-37, 1e-38, 3e-40, 1e-43, 1.5e-45])
@pytest.mark.parametrize("dtype", SCALED)
def test_scales_of_any_size(dtype: str, scale: float) -> None:
    weight = torch.randn(5, 60, generator=torch.Generator().manual_seed(2)).clamp(-3, 3)
    weight[:, 0] = 3.0
    weight *= scale
    check(weight, dtype)
    found, _ = copied(weight, dtype)
    assert found.isfinite().all() and (found[weight.abs().amax(1) > 0] != 0).any()


@devices
@pytest.mark.parametrize("limit", [1, 7, 64, 100, 1 << 17])
@pytest.mark.parametrize("dtype", SCALED)
def test_rows_are_rounded_alike_however_many_at_once(
    dtype: str, limit: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: tuple[tuple[int, ...], ...] = ((3, 70), (1, 300), (9, 30), (4, 3, 3, 3), (3, 17, 40), (2, 20, 16), (30, 6))
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device) for shape in shapes]
    weights += [weights[0].t(), weights[3].permute(1, 0, 2, 3), weights[4].transpose(1, 2), weights[4].transpose(0, 2)]
    weights += [weights[3].to(memory_format=torch.channels_last), weights[1].expand(3, 300), weights[2][::2, ::3]]
    expected = [copied(weight.contiguous(), dtype) for weight in weights]
    monkeypatch.setattr(scaled, "CPU_ELEMENTS", limit)
    for weight, (values, scales) in zip(weights, expected, strict=True):
        again = copied(weight, dtype)
        assert torch.equal(again[0], values) and torch.equal(again[1], scales)


@devices
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", SCALED)
def test_a_row_that_is_not_finite_says_so_and_the_others_stay(dtype: str, source: torch.dtype, device: str) -> None:
    good = torch.linspace(-2, 2, 40).view(4, 10)
    expected, _ = copied(good.to(device, source), dtype)
    for bad in (math.nan, math.inf, -math.inf):
        weight = good.clone()
        weight[1, 3], weight[2, 9] = bad, math.nan
        values, scales = copied(weight.to(device, source), dtype)
        assert scales.isfinite().tolist() == [True, False, False, True]
        assert torch.equal(values[[0, 3]], expected[[0, 3]])
        item, region = prepared(weight.to(device, source), dtype)
        with quiet_torch():
            copy(item, region)
        assert bytes(region.view[14:24]) == bytes(10), "elements of such a row are zero"


@pytest.mark.parametrize("dtype", SCALED)
def test_zero_stays_zero_and_no_alarm_where_the_trainer_flushes_subnormals(dtype: str) -> None:
    weight = torch.randn(4, 30)
    weight[1] = 0.0
    for flushed in (False, True):
        torch.set_flush_denormal(flushed)
        try:
            values, scales = copied(weight, dtype)
        finally:
            torch.set_flush_denormal(False)
        assert values.isfinite().all() and scales.isfinite().all()
        assert (values[1] == 0).all() and (values[0] != 0).any()


def test_float64_beyond_float32_is_not_finite() -> None:
    values, _ = copied(torch.full((2, 20), 1e300, dtype=torch.float64), "int8")
    assert not values.isfinite().any()


@pytest.mark.parametrize("dtype", SCALED)
def test_rows_too_short_for_a_scale_travel_as_they_are(dtype: str) -> None:
    def sent(source: torch.dtype, cols: int) -> tuple[str, int]:
        (item,), _ = watch({"w": torch.ones(8, cols, dtype=source)}, Selection(dtype))
        return item.dtype, item.num_bytes

    assert sent(torch.float32, 1) == ("float32", 32) and sent(torch.float32, 2) == (dtype, 48)
    assert sent(torch.bfloat16, 4) == ("bfloat16", 64) and sent(torch.bfloat16, 5) == (dtype, 72)


def test_a_stack_has_a_scale_for_each_row_of_each_matrix() -> None:
    weight = torch.ones(2, 16, 20)
    weight[0, 3] = 1000.0
    _, scales = copied(weight, "int8")
    assert scales.view(2, 16).argmax() == 3 and len(scales) == 32
    assert len(copied(torch.ones(2, 16, 3), "int8")[1]) == 2


@pytest.mark.usefixtures("two_intra_op_threads")
@pytest.mark.parametrize("dtype", SCALED)
def test_the_copy_leaves_no_trace(dtype: str) -> None:
    weight = torch.nn.Parameter(torch.randn(50, 60))
    item, region = prepared(weight, dtype)
    threads, version, before = torch.get_num_threads(), weight._version, weight.detach().clone()
    states: Any = random.getstate(), torch.get_rng_state()
    with quiet_torch():
        copy(item, region)
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, True)
    assert (weight._version, weight.grad_fn) == (version, None) and torch.equal(weight, before)
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())


def test_what_is_made_in_passing_is_small() -> None:
    """Of an 8 MB weight, in any layout that keeps rows apart or not."""
    weight = torch.randn(1024, 2048)
    for source in (weight, weight.t(), weight.view(4, 256, 2048), weight.view(4, 256, 2048).transpose(1, 2)):
        item, region = prepared(source, "int8")
        with quiet_torch(), torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            copy(item, region)
        sizes = [event.cpu_memory_usage for event in profile.events()]
        assert 4 * scaled.CPU_ELEMENTS <= max(sizes) <= 8 * scaled.CPU_ELEMENTS, source.stride()


def test_python_itself_keeps_nothing() -> None:
    item, region = prepared(torch.randn(512, 512), "int8")
    with quiet_torch():
        copy(item, region)
        tracemalloc.start()
        for _ in range(20):
            copy(item, region)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < 20_000
