"""A client that is attached to a model and its optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from absent_daemon import Make
from torch import nn


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(8, 8)
    model(torch.ones(1, 8)).sum().backward()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_model_that_is_attached_anew_is_pushed_once_a_step(make: Make) -> None:
    """As when a cell of a notebook runs again."""
    client, (model, optimizer) = make(), trained()
    client.attach(model, optimizer, every=1)
    client.attach(model, optimizer, every=1)
    optimizer.step()
    assert client.stats.num_pushes == 1
    client.attach(model, another := torch.optim.SGD(model.parameters(), lr=0.1), every=1, step=1)
    optimizer.step()
    assert client.stats.num_pushes == 1
    another.step()
    assert client.stats.num_pushes == 2


def test_a_push_after_detaching_does_not_rely_on_the_hook(make: Make) -> None:
    client, (model, optimizer) = make(), trained()
    assert client._pusher is not None
    fence, waits = client._pusher.fence, list[str]()
    fence._wait = lambda: waits.append("waited")
    attachment = client.attach(model, optimizer)
    optimizer.step()
    assert waits == ["waited"]
    client.push(model)
    assert waits == ["waited"]  # left to the hook
    optimizer.step()
    attachment.detach()
    waits.clear()
    client.push(model)
    assert waits == ["waited"]


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an optimizer by its class, which never was made one."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups  # type: ignore[no-any-return]

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_an_optimizer_in_a_wrapper_that_has_no_hooks(make: Make) -> None:
    client, (model, optimizer) = make(), trained()
    assert client._pusher is not None
    fence, waits = client._pusher.fence, list[str]()
    fence._wait = lambda: waits.append("waited")
    wrapper = Wrapper(Wrapper(optimizer))
    attachment = client.attach(model, wrapper, every=2)
    for _ in range(3):
        wrapper.step()
    assert client.stats.num_pushes == 2 and waits == 3 * ["waited"]  # each push's wait is left to the hook
    attachment.detach()
    wrapper.step()
    assert client.stats.num_pushes == 2


def test_a_wrapper_of_no_optimizer_is_named_and_nothing_stays_attached(make: Make) -> None:
    client, (model, optimizer) = make(), trained()
    assert client._pusher is not None
    for wrapper in (Wrapper(Wrapper(None)), type("Holder", (), {"optimizer": optimizer})()):
        with pytest.raises(TypeError, match=rf"optimizer={type(wrapper).__name__}: expected a torch\.optim\.Optimizer"):
            client.attach(model, wrapper, every=1)
    assert not client._attached and not client._pusher.fence._unseen
