"""What of a model is watched, under which names, and why the rest is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rankd_client.watch import Selection, Watched, watch


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
