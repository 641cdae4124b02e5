"""What is watched beside a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rankd_client.watch import Selection, watch_also
from rankd_client.watch.also import fitting
from rankd_client.wire import DTYPES

SELECTION = Selection("bfloat16", include=("nothing",), exclude=("*",))


def test_a_tensor_is_a_feature_and_a_pair_has_its_role() -> None:
    weight = torch.randn(8, 4)
    watched, skipped = watch_also(
        {"h": torch.randn(5, 3), "w": ("gradient", weight), "m": ("update", weight[:4])}, SELECTION
    )
    assert [(item.name, item.role, item.shape) for item in watched] == [
        ("h", "feature", (5, 3)),
        ("w", "gradient", (8, 4)),
        ("m", "update", (4, 4)),
    ]
    assert [item.label for item in watched] == ["h (feature)", "w (gradient)", "m (update)"]
    assert skipped == {}  # whoever hands it over wants it, whatever is excluded of the model


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_feature_has_a_row_for_each_vector_and_is_not_copied_for_it(dtype: str) -> None:
    hidden = torch.randn(2, 20, 32).transpose(0, 1)  # no view has these rows
    (item,), _ = watch_also({"h": hidden}, Selection(dtype))
    assert item.shape == (40, 32) and item.num_bytes == DTYPES[dtype].num_bytes(40 * 32, (40, 32))
    assert item.tensor.data_ptr() == hidden.data_ptr() and item.decode is None


def test_a_gradient_keeps_the_shape_of_its_weight() -> None:
    (item,), _ = watch_also({"conv": ("gradient", torch.randn(8, 3, 2, 2))}, SELECTION)
    assert item.shape == (8, 3, 2, 2)


class Breaking(torch.Tensor):
    @property
    def shape(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no shape")


@pytest.mark.parametrize(
    ("value", "label", "reason"),
    [
        (torch.randn(3), "x (feature)", "fewer than 2 dimensions"),
        (torch.tensor(1.0), "x (feature)", "fewer than 2 dimensions"),
        (torch.ones(2, 2, dtype=torch.int32), "x (feature)", "dtype torch.int32"),
        (torch.empty(0, 4), "x (feature)", "empty"),
        (torch.empty(2, 2, device="meta"), "x (feature)", "meta"),
        (None, "x (feature)", "not a tensor"),
        (("gradient", None), "x (gradient)", "not a tensor"),
        (("weight", torch.ones(2, 2)), "x (also)", "role weight: expected update, gradient, feature"),
        (("spam", torch.ones(2, 2)), "x (also)", "role spam: expected update, gradient, feature"),
        ((torch.ones(2, 2), torch.ones(2, 2)), "x (feature)", "not a tensor"),
        (Breaking(), "x (feature)", "cannot be read: RuntimeError"),
    ],
)
def test_what_is_not_watched_has_its_reason(value: Any, label: str, reason: str) -> None:
    watched, skipped = watch_also({"x": value, "y": torch.ones(2, 2)}, SELECTION)
    assert [item.name for item in watched] == ["y"] and skipped == {label: reason}


@pytest.mark.parametrize("also", [torch.ones(2, 2), [("x", torch.ones(2, 2))], 7, "x"])
def test_what_is_no_mapping_is_skipped(also: Any) -> None:
    watched, skipped = watch_also(also, SELECTION)
    assert watched == [] and "expected a mapping" in skipped["also"]


def test_names_are_cleaned_as_a_models_are_for_each_role() -> None:
    ones = torch.ones(2, 2)
    also = {"module._orig_mod.a": ("gradient", ones), "module.b": ("gradient", ones), "h": ones, 3: ones}
    watched, skipped = watch_also(also, SELECTION)
    assert [item.label for item in watched] == ["a (gradient)", "b (gradient)", "h (feature)"]
    assert skipped == {"<int> (also)": "name is not a string"} or list(skipped.values()) == ["name is not a string"]


def test_names_that_clash_are_both_refused() -> None:
    ones = torch.ones(2, 2)
    watched, skipped = watch_also({"a": ones, "_orig_mod.a": ones, "b": ones}, SELECTION)
    assert [item.name for item in watched] == ["b"]
    assert set(skipped) == {"a (feature)", "_orig_mod.a (feature)"}


def test_what_does_not_fit_comes_first_next_time() -> None:
    items, _ = watch_also({name: torch.ones(4, 4) for name in "abc"}, SELECTION)
    size = items[0].num_bytes
    assert [item.name for item in fitting(items, 2 * size, {})] == ["a", "b"]
    assert [item.name for item in fitting(items, 2 * size, {"a (feature)": 1, "b (feature)": 1})] == ["c", "a"]
    assert [item.name for item in fitting(items, 2 * size, None)] == ["a", "b"]  # alike in all processes
    assert fitting(items, size - 1, {}) == []
