"""An optimizer's float32 copies in the place of weights."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rankd_client.watch import Selection, Watched, watch


def model() -> nn.Linear:
    return nn.Linear(4, 6, dtype=torch.bfloat16)


def found(module: nn.Module, *optimizers: Any, masters: bool = True) -> Watched:
    references = tuple(weakref.ref(optimizer) for optimizer in optimizers)
    watched, _ = watch(module, Selection(masters=masters, optimizers=references))
    return watched[0]


class WithMasters(torch.optim.SGD):
    """Mixed precision as people write it: float32 copies in the optimizer's state; weights are rounded from them."""

    key = "master_param"

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                master = state.setdefault(self.key, parameter.detach().float())
                master.add_(parameter.grad.float(), alpha=-group["lr"])
                parameter.data.copy_(master)
        return None


def trained(key: str = "master_param") -> tuple[nn.Linear, WithMasters]:
    module = model()
    optimizer = WithMasters(module.parameters(), lr=1e-3)
    optimizer.key = key
    module(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("key", ["master_param", "master_weights", "master", "fp32_param"])
def test_the_copy_in_an_optimizers_state_is_taken(key: str) -> None:
    module, optimizer = trained(key)
    item = found(module, optimizer)
    master = optimizer.state[module.weight][key]
    assert (item.name, item.source_dtype, item.is_master) == ("weight", "float32", True)
    assert item.values().data_ptr() == master.data_ptr() and not torch.equal(item.values(), module.weight.float())


def test_the_weight_itself_is_where_nobody_asks_for_more_or_there_is_no_more() -> None:
    module, optimizer = trained()
    for item in (found(module, optimizer, masters=False), found(module), found(model(), optimizer)):
        assert (item.source_dtype, item.is_master, item.note) == ("bfloat16", False, "")


def test_asking_leaves_no_trace_in_the_optimizer() -> None:
    module = model()
    optimizer = torch.optim.AdamW(module.parameters())
    found(module, optimizer)
    assert len(optimizer.state) == 0


def test_an_optimizer_that_is_gone_is_not_asked() -> None:
    module, optimizer = trained()
    reference = weakref.ref(optimizer)
    del optimizer
    watched, _ = watch(module, Selection(masters=True, optimizers=(reference,)))
    assert not watched[0].is_master


def test_megatrons_and_deepspeeds_own_ways() -> None:
    module = model()
    master = module.weight.detach().float()
    module.weight.main_param = master  # type: ignore[attr-defined]
    assert found(module).values().data_ptr() == master.data_ptr()
    del module.weight.main_param
    module.weight._hp_mapping = SimpleNamespace(hp_fragment=master.view(-1))  # type: ignore[attr-defined]
    item = found(module)
    assert item.values().data_ptr() == master.data_ptr() and item.values().shape == (6, 4)


def test_lists_of_pairs_and_optimizers_inside_others() -> None:
    module = model()
    masters = [parameter.detach().float() for parameter in module.parameters()]

    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

    inner = Wrapper(None)
    inner.float16_groups = [list(module.parameters())]  # type: ignore[attr-defined]
    inner.fp32_from_float16_groups = [masters]  # type: ignore[attr-defined]
    outer = Wrapper(inner)
    inner.optimizer = outer  # a ring has an end too
    assert found(module, outer).values().data_ptr() == masters[0].data_ptr()
    fused = torch.optim.SGD(module.parameters())
    fused.param_groups_master = [{"params": masters}]  # type: ignore[attr-defined]
    assert found(module, fused).is_master


@pytest.mark.parametrize(
    ("master", "note"),
    [
        (torch.ones(7), "master of shape (7,), a shard"),
        (torch.ones(6, 4, dtype=torch.int16), "master of torch.int16"),
        ("nothing", ""),
    ],
)
def test_a_copy_that_is_not_the_whole_is_left_with_a_reason(master: Any, note: str) -> None:
    module = model()
    module.weight.main_param = master  # type: ignore[attr-defined]
    item = found(module)
    assert (item.is_master, item.note, item.source_dtype) == (False, note, "bfloat16")
