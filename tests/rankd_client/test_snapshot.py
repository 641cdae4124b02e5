"""What of a model is watched, and whether the copy of it is one."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rankd_client.arena import Arena, Region
from rankd_client.snapshot import Selection, Watched, allocate, copy, quiet_torch, watch


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
        name, device_bytes = copy(item, region)
    assert device_bytes == 0
    return torch.frombuffer(bytearray(region.view), dtype=getattr(torch, name)).view(item.shape)


def names(watched: list[Watched]) -> list[str]:
    return [item.name for item in watched]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.experts = nn.Parameter(torch.randn(2, 4, 4))


def test_every_parameter_of_two_or_more_dimensions_and_tied_ones_once() -> None:
    watched, skipped = watch(Tied(), Selection())
    assert names(watched) == ["experts", "embed.weight", "conv.weight"]
    assert [item.shape for item in watched] == [(2, 4, 4), (10, 4), (3, 2, 3, 3)]
    assert skipped == {
        "conv.bias": "fewer than 2 dimensions",
        "norm.weight": "fewer than 2 dimensions",
        "norm.bias": "fewer than 2 dimensions",
        "head.weight": "tied to embed.weight",
    }


def test_a_state_dict_has_tied_weights_twice_and_they_count_once() -> None:
    watched, skipped = watch(Tied().state_dict(), Selection())
    assert sorted(names(watched)) == ["conv.weight", "embed.weight", "experts"]
    assert skipped["head.weight"] == "tied to embed.weight"


def test_wrappers_are_not_part_of_a_name() -> None:
    watched, _ = watch({"module._orig_mod.h.0.weight": torch.ones(2, 2)}, Selection())
    assert names(watched) == ["h.0.weight"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.ones(3), "fewer than 2 dimensions"),
        (torch.tensor(1.0), "fewer than 2 dimensions"),
        (torch.ones(2, 2, dtype=torch.int8), "dtype torch.int8"),
        (torch.ones(2, 2, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, 2, device="meta"), "meta"),
        (torch.ones(0, 3), "empty"),
        (torch.ones(3, 0), "empty"),
        (torch.ones((1,) * 9), "more than 8 dimensions"),
        (nn.UninitializedParameter(), "not initialised yet"),
        ([[1.0]], "not a tensor"),
        (None, "not a tensor"),
    ],
)
def test_what_is_not_watched_says_why(value: Any, reason: str) -> None:
    watched, skipped = watch({"w": value, "ok": torch.ones(2, 2)}, Selection())
    assert names(watched) == ["ok"] and skipped == {"w": reason}


def test_two_tensors_of_one_name_are_both_refused_and_both_named() -> None:
    model = {"_orig_mod.a": torch.ones(2, 2), "a": torch.ones(3, 3), "b": torch.ones(2, 2)}
    watched, skipped = watch(model, Selection())
    assert names(watched) == ["b"]
    assert set(skipped) == {"_orig_mod.a", "a"}
    assert all("'_orig_mod.a' and 'a' are both called 'a'" in reason for reason in skipped.values())


def test_a_submodule_that_is_really_called_module_is_watched() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2, bias=False)})
    for wrapped in (model, nn.ModuleDict({"module": model}), nn.ModuleDict({"_orig_mod": model})):
        assert names(watch(wrapped, Selection())[0]) == ["module.weight", "head.weight"]
    mapping = {"module.weight": torch.ones(2, 2), "weight": torch.ones(3, 3)}
    assert names(watch(mapping, Selection())[0]) == ["module.weight", "weight"]


def test_a_fake_tensor_is_none_to_copy() -> None:
    with FakeTensorMode():
        fake = torch.ones(2, 2)
    assert watch({"w": fake}, Selection()) == ([], {"w": "fake"})


class Breaking(torch.Tensor):
    """A tensor that cannot even be asked for its shape."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError("nothing to see")


def test_one_layer_that_cannot_be_looked_at_does_not_cost_the_others() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)])
    model = {"a": torch.ones(2, 2), "b": torch.ones(2, 2).as_subclass(Breaking), "c": nested, "d": torch.ones(2, 2)}
    watched, skipped = watch(model, Selection())
    assert names(watched) == ["a", "d"]
    assert skipped == {"b": "cannot be read: NotImplementedError", "c": "cannot be read: RuntimeError"}


@pytest.mark.parametrize("name", ["", "x" * 1025, "a\0b", "\ud800"])
def test_names_that_cannot_travel(name: str) -> None:
    watched, skipped = watch({name: torch.ones(2, 2)}, Selection())
    assert not watched and "UTF-8 bytes without NUL" in skipped[name]


def test_names_with_control_characters_travel_as_they_are() -> None:
    watched, _ = watch({"h\x1b[31m\n.weight": torch.ones(2, 2), 3: torch.ones(2, 2)}, Selection())
    assert names(watched) == ["h\x1b[31m\n.weight"]


def test_globs_are_for_cleaned_names() -> None:
    model = {f"module.h.{i}.weight": torch.ones(2, 2) for i in range(4)}
    watched, skipped = watch(model, Selection(include=("h.*",), exclude=("h.3.*",), priority=("*.2.*",)))
    assert names(watched) == ["h.0.weight", "h.1.weight", "h.2.weight"]
    assert [item.priority for item in watched] == [False, False, True]
    assert skipped == {"h.3.weight": "excluded"}
    assert watch(model, Selection(include=()))[0] == []


def test_empty_models_and_things_that_are_none() -> None:
    assert watch(nn.Module(), Selection()) == ([], {})
    assert watch({}, Selection()) == ([], {})
    with pytest.raises(TypeError, match=r"model=list: expected a torch\.nn\.Module or a mapping"):
        watch([torch.ones(2, 2)], Selection())


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
