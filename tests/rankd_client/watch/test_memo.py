"""Looking again: the same objects while nothing has changed, and whatever has changed is seen."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from rankd_client.watch import Selection, Watched, Watcher, watch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.first.register_parameter("adapter", None)
        self.rest = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_the_same_objects_again() -> None:
    model, watcher = Net(), Watcher(Selection())
    first, first_skipped = watcher.look(model)
    assert not watcher.again
    second, second_skipped = watcher.look(model)
    assert watcher.again and second_skipped == first_skipped
    assert all(a is b for a, b in zip(first, second, strict=True))
    second.clear()
    second_skipped.clear()
    again, skipped = watcher.look(model)  # what the caller does with it is the caller's
    assert skipped == first_skipped and all(a is b for a, b in zip(first, again, strict=True))


def resize(model: Net) -> None:
    model.first.weight.data = model.first.weight.data[:3]  # the same memory, less of it


def widen(model: Net) -> None:
    model.first.weight.data = model.first.weight.data.double()


def replace(model: Net) -> None:
    model.first.weight = nn.Parameter(torch.ones(6, 4))


def add_layer(model: Net) -> None:
    model.rest.append(nn.Linear(3, 2))


def add_parameter(model: Net) -> None:
    model.first.register_parameter("scale", nn.Parameter(torch.ones(2, 2)))


def fill_in(model: Net) -> None:
    model.first.adapter = nn.Parameter(torch.ones(2, 3))  # which was declared, and absent


def remove(model: Net) -> None:
    del model.rest[2]


def exchange(model: Net) -> None:
    model.rest[0] = nn.Linear(6, 5)


def untie(model: Net) -> None:
    model.rest[0].bias = nn.Parameter(torch.ones(5))


def looks(item: Watched) -> tuple[object, ...]:
    return item.name, item.shape, item.dtype, item.tensor.data_ptr()


@pytest.mark.parametrize("change", [resize, widen, replace, add_layer, add_parameter, fill_in, remove, exchange])
def test_what_has_changed_is_seen(change: Callable[[Net], None]) -> None:
    model, watcher = Net(), Watcher(Selection("float64"))
    before = [looks(item) for item in watcher.look(model)[0]]
    change(model)
    after = [looks(item) for item in watcher.look(model)[0]]
    assert not watcher.again
    assert after == [looks(item) for item in watch(model, Selection("float64"))[0]]
    assert after != before
    watcher.look(model)
    assert watcher.again


def test_another_model_and_what_is_no_module() -> None:
    watcher = Watcher(Selection())
    one, other = Net(), Net()
    watcher.look(one)
    watcher.look(other)
    assert not watcher.again
    weights = {"w": torch.ones(2, 2)}
    for _ in range(2):
        assert [item.name for item in watcher.look(weights)[0]] == ["w"]
        assert not watcher.again
    with pytest.raises(TypeError):
        watcher.look(3)


def test_nothing_of_a_model_that_is_gone_is_kept_alive() -> None:
    gone: list[int] = []
    watcher = Watcher(Selection(), on_gone=lambda: gone.append(1))
    model = Net()
    weight = weakref.ref(model.first.weight)
    for _ in range(2):
        watcher.look(model)
    del model
    gc.collect()
    assert weight() is None and gone == [1]
    assert watcher.look(Net())[0] and not watcher.again


def test_a_vector_that_is_replaced_changes_nothing() -> None:
    model, watcher = Net(), Watcher(Selection())
    first, _ = watcher.look(model)
    untie(model)
    assert all(a is b for a, b in zip(watcher.look(model)[0], first, strict=True))
