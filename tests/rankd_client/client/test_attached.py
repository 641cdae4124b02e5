"""A client that is attached to a model and its optimizer."""

from __future__ import annotations

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
