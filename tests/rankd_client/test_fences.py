"""Who waits for copies that go on, and when; and what an attached client does at each step."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from rankd_client.fences import Attachment, Fence, check_attached


class Waits:
    """Counts, in the place of a GPU's streams."""

    def __init__(self) -> None:
        self.count = 0
        self.capturing = False

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def fence(waits: Waits) -> Fence:
    return Fence(waits, lambda: waits.capturing)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_without_a_hook_a_push_waits_itself(fence: Fence, waits: Waits) -> None:
    fence.pushed(nn.Linear(2, 2))
    fence.pushed({"w": torch.ones(2, 2)})
    assert waits.count == 2


def test_a_hook_that_has_run_since_the_last_push_is_left_the_wait(fence: Fence, waits: Waits) -> None:
    model, optimizer = trained()
    assert fence.watch(model, [optimizer])
    fence.pushed(model)
    assert waits.count == 1  # nothing has shown yet that the hook runs
    for turn in range(3):
        fence.before_step(optimizer)
        assert waits.count == 2 + turn
        fence.pushed(model)
        assert waits.count == 2 + turn
    fence.pushed(model)  # no step in between: as in a replayed graph
    assert waits.count == 5


def test_all_optimizers_have_to_have_shown(fence: Fence, waits: Waits) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    assert fence.watch(model, optimizers)
    fence.before_step(optimizers[0])
    fence.pushed(model)
    assert waits.count == 2
    for optimizer in optimizers:
        fence.before_step(optimizer)
    fence.pushed(model)
    assert waits.count == 4


def test_weights_of_no_optimizer_are_not_left_to_one(fence: Fence, waits: Waits) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    assert not fence.watch(model, [optimizer])
    fence.before_step(optimizer)
    fence.pushed(model)
    assert waits.count == 2
    model[1].requires_grad_(False)
    assert not fence.watch(model, [optimizer])  # frozen, but it may be an average that somebody writes
    assert fence.watch(model, [optimizer], lambda name: name != "1.weight")
    model[1].weight = nn.Parameter(torch.ones(2))  # vectors are not watched
    assert fence.watch(model, [optimizer])


def test_another_model_is_not_left_to_the_hook(fence: Fence, waits: Waits) -> None:
    model, optimizer = trained()
    fence.watch(model, [optimizer])
    fence.before_step(optimizer)
    fence.pushed(nn.Linear(2, 2))
    assert waits.count == 2


def test_while_a_graph_is_captured_nothing_waits_and_nothing_is_left(fence: Fence, waits: Waits) -> None:
    model, optimizer = trained()
    fence.watch(model, [optimizer])
    waits.capturing = True
    fence.before_step(optimizer)
    fence.now()
    assert waits.count == 0
    waits.capturing = False
    fence.pushed(model)
    assert waits.count == 1
    fence.now()
    assert waits.count == 2


def test_what_is_forgotten_is_not_left_to_the_hook(fence: Fence, waits: Waits) -> None:
    model, optimizer = trained()
    fence.watch(model, [optimizer])
    fence.before_step(optimizer)
    fence.forget(id(model), {id(optimizer)})
    assert waits.count == 2  # for copies that were left to the hook
    fence.pushed(model)
    assert waits.count == 3


def attach(every: int | None, step: int = 0) -> tuple[Attachment, torch.optim.Optimizer, nn.Module, list[Any]]:
    model, optimizer = trained()
    seen: list[Any] = []
    attachment = Attachment(model, [optimizer], every, step, lambda model, step: seen.append(step))
    attachment.hook(lambda which: seen.append("before"), lambda work: work())
    return attachment, optimizer, model, seen


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()


def test_it_pushes_after_every_so_many_steps() -> None:
    attachment, optimizer, model, seen = attach(every=3, step=7)
    take_steps(model, optimizer, 6)
    assert [step for step in seen if step != "before"] == [9, 12]
    assert seen.count("before") == 6
    attachment.detach()
    attachment.detach()
    take_steps(model, optimizer, 3)
    assert seen.count("before") == 6


def test_who_detaches_says_so_once() -> None:
    model, optimizer = trained()
    attachment, seen = Attachment(model, [optimizer], None, 0, lambda model, step: None), []
    attachment.hook(lambda which: None, lambda work: work(), lambda: seen.append("detached"))
    attachment.detach()
    attachment.detach()
    assert seen == ["detached"]


def test_who_pushes_by_hand_is_not_helped() -> None:
    attachment, optimizer, model, seen = attach(every=1)
    take_steps(model, optimizer, 1)
    attachment.by_hand()
    take_steps(model, optimizer, 2)
    assert [step for step in seen if step != "before"] == [0]


def test_without_every_it_only_fences() -> None:
    _, optimizer, model, seen = attach(every=None)
    take_steps(model, optimizer, 2)
    assert seen == ["before", "before"]


def test_nothing_of_the_model_is_kept_alive() -> None:
    attachment, optimizer, model, _ = attach(every=1)
    dead = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    attachment.detach()


MODEL, OPTIMIZER = trained()


@pytest.mark.parametrize(
    ("model", "optimizer", "every", "step", "message"),
    [
        (3, OPTIMIZER, 1, 0, r"model=int: expected a torch\.nn\.Module"),
        (MODEL, None, 1, 0, r"optimizer=NoneType: expected a torch\.optim\.Optimizer, or several"),
        (MODEL, [], 1, 0, r"optimizer=\[\]: expected a torch\.optim\.Optimizer, or several"),
        (MODEL, OPTIMIZER, 0, 0, "every=0: expected an integer of at least 1"),
        (MODEL, OPTIMIZER, True, 0, "every=True: expected an integer of at least 1"),
        (MODEL, OPTIMIZER, 1.5, 0, "float"),
        (MODEL, OPTIMIZER, 1, -1, "step=-1: expected an integer of at least 0"),
    ],
)
def test_wrong_arguments_are_named(model: Any, optimizer: Any, every: Any, step: int, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        check_attached(model, optimizer, every, step)
    assert check_attached(MODEL, (OPTIMIZER,), None, 0) == [OPTIMIZER]
