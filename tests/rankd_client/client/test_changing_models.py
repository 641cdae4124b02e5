"""A model that is another one from step to step: pushes go on with what is there, as it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from absent_daemon import Make
from queued import queued
from torch import nn
from torch.nn.utils import parametrizations, prune

from rankd_client import Client


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def assert_queued(client: Client, parameters: dict[str, torch.Tensor]) -> None:
    """Of the layers that are there now, the newest is queued (what is gone may wait still)."""
    copies = queued(client)
    for name, parameter in parameters.items():
        assert torch.equal(copies[name], parameter.detach().to(copies[name].dtype)), name


def matrices(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in module.named_parameters() if tensor.dim() > 1}


def add(module: nn.Sequential) -> None:
    module.append(nn.Linear(8, 4))


def remove(module: nn.Sequential) -> None:
    del module[1]


def resize(module: nn.Sequential) -> None:
    module[0] = nn.Linear(12, 8)


def swap(module: nn.Sequential) -> None:
    module[0], module[1] = module[1], module[0]


def replace_by_one_alike(module: nn.Sequential) -> None:
    module[1] = nn.Linear(8, 8)


def replace_parameter(module: nn.Sequential) -> None:
    module[0].weight = nn.Parameter(torch.randn(8, 8))


def replace_data(module: nn.Sequential) -> None:
    module[0].weight.data = torch.randn(8, 8)


def replace_data_by_another_layout(module: nn.Sequential) -> None:
    module[0].weight.data = torch.randn(8, 8).t()


def set_in_place(module: nn.Sequential) -> None:
    with torch.no_grad():
        module[0].weight.set_(torch.randn(8, 8))  # type: ignore[call-overload]


def resize_data(module: nn.Sequential) -> None:
    module[0].weight.data = torch.randn(5, 3)


def halve(module: nn.Sequential) -> None:
    module.half()


def double(module: nn.Sequential) -> None:
    module.double()


def freeze(module: nn.Sequential) -> None:
    module.requires_grad_(False)


def load(module: nn.Sequential) -> None:
    module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()}, assign=True)


def tie(module: nn.Sequential) -> None:
    module[1].weight = module[0].weight


CHANGES: list[Callable[[nn.Sequential], None]] = [
    add,
    remove,
    resize,
    swap,
    replace_by_one_alike,
    replace_parameter,
    replace_data,
    replace_data_by_another_layout,
    set_in_place,
    resize_data,
    halve,
    double,
    freeze,
    load,
    tie,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_is_changed_between_pushes(make: Make, change: Callable[[nn.Sequential], None]) -> None:
    client, module = make(), model()
    client.push(module)
    client.push(module)
    change(module)
    for _ in range(2):
        receipt = client.push(module)
        assert receipt.num_queued == len(matrices(module)), receipt
        assert_queued(client, matrices(module))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2.0)
    assert client.num_errors == 0


def test_all_changes_one_after_the_other(make: Make) -> None:
    client, module = make(), model()
    for change in [*CHANGES, *reversed(CHANGES)]:
        if len(module) < 2:
            add(module)
        change(module)
        assert client.push(module).num_queued == len(matrices(module))
        assert_queued(client, matrices(module))
    assert client.num_errors == 0


def test_a_model_that_goes_to_the_meta_device_and_comes_back(make: Make) -> None:
    client, module = make(), model()
    assert client.push(module).num_queued == 2
    module.to("meta")
    receipt = client.push(module)
    assert (receipt.num_queued, receipt.skipped["0.weight"], receipt.skipped["1.weight"]) == (0, "meta", "meta")
    module.to_empty(device="cpu")
    assert client.push(module).num_queued == 2 and client.num_errors == 0


def test_lazy_modules_go_from_when_they_are_there(make: Make) -> None:
    client, module = make(), nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 8))
    assert client.push(module).skipped["0.weight"] == "not initialised yet"
    module(torch.ones(2, 5))
    assert client.push(module).num_queued == 2
    assert_queued(client, matrices(module))


def test_weights_that_become_parametrised_and_pruned(make: Make) -> None:
    client, module = make(), model()
    client.push(module)
    parametrizations.weight_norm(module[0])
    prune.l1_unstructured(module[1], "weight", amount=0.5)
    receipt = client.push(module)
    assert receipt.num_queued >= 2 and client.num_errors == 0, receipt
    assert client.push(module).num_replaced == receipt.num_queued


class Fickle(nn.Module):
    """Now and then it breaks as it is asked what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.fails = False

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise RuntimeError("not now")
        return super().named_parameters(*args, **kwargs)


def test_a_model_that_breaks_and_is_well_again(make: Make) -> None:
    client, module = make(strict=False), Fickle()
    queued_numbers = []
    for module.fails in (False, True, True, False):
        queued_numbers.append(client.push(module).num_queued)
    assert queued_numbers == [1, 0, 0, 1] and client.num_errors == 2


def test_a_model_that_is_forgotten_is_not_kept(make: Make) -> None:
    client, module = make(), model()
    client.push(module)
    gone = weakref.ref(module), weakref.ref(module[0].weight)
    del module
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert client.push(model()).num_queued == 2


class Anything:
    """An adapter that knows nothing of any parameter."""

    def place(self, name: str, tensor: Any) -> None:
        return None


@pytest.mark.parametrize(
    "options", [{}, {"adapters": [Anything()]}, {"source": "master"}], ids=["", "adapter", "master"]
)
@pytest.mark.parametrize("as_mapping", [False, True])
def test_nothing_is_kept_of_what_is_looked_at_each_time(make: Make, options: dict[str, Any], as_mapping: bool) -> None:
    client, module = make(**options), model()
    gone = weakref.ref(module[0].weight)
    for _ in range(3):
        assert client.push(dict(module.named_parameters()) if as_mapping else module).num_queued == 2
    del module
    gc.collect()
    assert gone() is None


def test_nothing_is_kept_of_what_was_beside_a_model(make: Make) -> None:
    client, module, feature = make(), model(), torch.ones(4, 4)
    gone = weakref.ref(feature)
    assert client.push(module, also={"h": feature}).num_queued == 3
    del feature
    gc.collect()
    assert gone() is None


def test_what_was_beside_a_model_once_is_not_skipped_later(make: Make) -> None:
    client, module = make(), model()
    client.push(module)
    assert "h (feature)" in client.push(module, also={"h": torch.ones(3)}).skipped
    for _ in range(2):
        assert client.push(module).skipped.keys() == {"0.bias", "1.bias"}


def test_models_in_turn(make: Make) -> None:
    """As a generator and a discriminator are pushed; a model at the address of one that is gone is no old friend."""
    client = make()
    for number in range(20):
        module = nn.ModuleDict({f"m{number % 3}": nn.Linear(8, 8)})
        receipt = client.push(module)
        assert receipt.num_queued == 1, receipt
        assert_queued(client, matrices(module))
        del module
    assert client.num_errors == 0
