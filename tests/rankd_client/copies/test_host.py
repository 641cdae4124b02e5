"""Whether the copy of a tensor is one, and leaves no trace."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from rankd_client.arena import Arena, Region
from rankd_client.copies import allocate, copy, quiet_torch
from rankd_client.copies.halves import is_unfit
from rankd_client.watch import Selection, watch


def regions() -> Arena:
    arena = Arena(1 << 20, allocate)
    arena.grow(1 << 20)
    return arena


def copied(tensor: torch.Tensor, dtype: str = "bfloat16") -> torch.Tensor:
    """What travels, read back from the bytes."""
    (item,), _ = watch({"w": tensor}, Selection(dtype))
    region = regions().reserve(item.num_bytes)
    assert region is not None
    with quiet_torch():
        name = copy(item, region)
    return torch.frombuffer(bytearray(region.view), dtype=getattr(torch, name)).view(item.shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16", "float64"])
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_copy_is_the_cast(source: torch.dtype, dtype: str) -> None:
    weight = torch.linspace(-3, 7, 35, dtype=torch.float64).view(5, 7).to(source)
    copy_ = copied(weight, dtype)
    wanted: torch.dtype = getattr(torch, dtype)
    assert copy_.dtype == (source if source.itemsize <= wanted.itemsize else wanted)  # never wider than the weights
    assert torch.equal(copy_, weight.to(copy_.dtype))


def test_the_copy_is_row_major_whatever_the_layout_is() -> None:
    base = torch.arange(60, dtype=torch.float32).view(3, 4, 5)
    for view in (base.permute(2, 0, 1), base[:, ::2], base.expand(2, 3, 4, 5).transpose(0, 3)):
        assert torch.equal(copied(view, "float32"), view)
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert torch.equal(copied(image, "float32"), image)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_nan_and_infinity_travel_as_they_are(dtype: str) -> None:
    copy_ = copied(torch.tensor([[math.nan, 1.0], [2.0, 3.0]]), dtype)
    assert copy_.isnan().tolist() == [[True, False], [False, False]]
    copy_ = copied(torch.tensor([[math.inf, 1.0], [-math.inf, 3.0]]), dtype)
    assert copy_.float().tolist() == [[math.inf, 1.0], [-math.inf, 3.0]]


@pytest.mark.parametrize("value", [1e6, -1e6, 1e-9])
def test_float16_raises_no_false_alarm(value: float) -> None:
    copy_ = copied(torch.full((4, 4), value), "float16")
    assert copy_.dtype is torch.bfloat16
    assert copy_.isfinite().all() and (copy_ != 0).all()
    assert copied(torch.full((4, 4), 60000.0), "float16").dtype is torch.float16


MADE = {
    "normal": torch.randn(96, 64, generator=torch.Generator().manual_seed(0)),
    "constant": torch.ones(96, 64),
    "rank 1": torch.linspace(-1, 1, 96)[:, None] * torch.linspace(0.1, 1, 64),
    "heavy tails": torch.linspace(-1.56, 1.56, 96 * 64).tan().view(64, 96).t(),
    "outlier row": torch.randn(96, 64, generator=torch.Generator().manual_seed(1)).index_fill(0, torch.tensor([5]), 80),
}


@pytest.mark.parametrize("scale", [1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7, 3e-8, 1e-8, 1e-9])
@pytest.mark.parametrize("name", MADE)
def test_norms_of_small_weights_as_float16_are_those_of_the_weights(name: str, scale: float) -> None:
    weight = MADE[name] * scale
    true, found = (torch.linalg.svdvals(matrix.double()) for matrix in (weight, copied(weight, "float16")))
    assert float(found[0]) == pytest.approx(float(true[0]), rel=0.004)
    assert float(found.norm()) == pytest.approx(float(true.norm()), rel=0.004)
    assert float((found - true).abs().max()) < 0.004 * float(true[0])


@pytest.mark.parametrize("source", [torch.float64, torch.float32])
def test_it_travels_as_float16_where_that_rounds_no_more_than_bfloat16(source: torch.dtype) -> None:
    weight = MADE["normal"].to(source) / MADE["normal"].square().mean().sqrt()
    for rms, wanted in ((1.01, torch.float16), (0.99, torch.bfloat16)):
        small = weight * rms * 2.0**-17
        assert copied(small, "float16").dtype is wanted
        assert copied(torch.full((9, 5), rms * 2.0**-17, dtype=source), "float16").dtype is wanted
        assert bool(is_unfit(small)) is (wanted is torch.bfloat16)


@pytest.mark.parametrize(
    ("values", "unfit"),
    [([0.0], True), ([65519.0], False), ([-65520.0], True), ([math.inf, 1.0], True), ([math.nan, 1e6], False)],
)
def test_the_device_decides_as_the_host_does(values: list[float], unfit: bool) -> None:
    weight = torch.tensor([values])
    assert bool(is_unfit(weight)) is unfit
    assert (copied(torch.cat([weight] * 6, dim=1), "float16").dtype is torch.bfloat16) is unfit


@pytest.mark.usefixtures("two_intra_op_threads")
def test_the_copy_leaves_no_trace() -> None:
    """Threads, autograd, versions, gradients and every random state are what they were."""
    weight = nn.Parameter(torch.randn(8, 8))
    (weight * 2).sum().backward()
    (item,), _ = watch({"w": weight}, Selection())
    region = regions().reserve(item.num_bytes)
    assert region is not None and weight.grad is not None
    threads, grad, version = torch.get_num_threads(), weight.grad.clone(), weight._version
    states = random.getstate(), torch.get_rng_state()
    with quiet_torch():
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        copy(item, region)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, True)
    assert (weight._version, weight.requires_grad, weight.grad_fn) == (version, True, None)
    assert torch.equal(weight.grad, grad)
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())


@pytest.mark.usefixtures("two_intra_op_threads")
def test_threads_come_back_after_an_error() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="within"), quiet_torch():
        raise RuntimeError("within")
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()


def test_inference_mode_and_default_devices_do_not_matter() -> None:
    with torch.inference_mode():
        weight = torch.randn(4, 4)
        first = copied(weight, "float32")
    with torch.device("meta"):
        arena = regions()
    (item,), _ = watch({"w": weight}, Selection("float32"))
    region: Region | None = arena.reserve(item.num_bytes)
    assert region is not None
    with quiet_torch():
        copy(item, region)
    assert bytes(region.view) == bytes(first.untyped_storage().tolist())
