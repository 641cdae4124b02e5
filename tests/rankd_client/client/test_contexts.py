"""Wherever in somebody's program a push is made: what is copied is the weights, and nothing else is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from absent_daemon import Make, model_of
from queued import queued
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rankd_client import Client, PushReceipt


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Functional(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def setting(change: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(back)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "default_device": lambda: setting(torch.set_default_device, "meta", None),
    "default_dtype": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "fake": FakeTensorMode,
    "fake_and_real": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "dispatch_mode": Dispatching,
    "function_mode": Functional,
    "flops": lambda: FlopCounterMode(display=False),
    "fork_rng": torch.random.fork_rng,
}


def state() -> list[Any]:
    flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return [flags, torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist()]


@pytest.mark.usefixtures("two_intra_op_threads")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_push_within(make: Make, context: str, dtype: str) -> None:
    """The first one, which allocates, too."""
    client, model = make(dtype=dtype), nn.Linear(24, 16)
    with CONTEXTS[context]():
        before = state()
        receipts = [client.push(model), client.push(model)]
        assert state() == before
    assert [receipt.num_queued for receipt in receipts] == [1, 1]
    if dtype in ("bfloat16", "float16"):
        assert torch.equal(queued(client)["weight"], model.weight.detach().to(getattr(torch, dtype)))
    assert client.push(model).num_replaced == 1 and client.num_errors == 0


class Pushing(torch.Tensor):
    """Whoever copies it meets another push."""

    receipts: list[PushReceipt]
    client: Client

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.detach:
            cls.receipts.append(cls.client.push(model_of()))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_push_from_a_hook_within_a_push_gives_up_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd_client.client.LOCK_SECONDS", threading.TIMEOUT_MAX)
    Pushing.client, Pushing.receipts = make(), []
    assert Pushing.client.push({"w": torch.ones(4, 4).as_subclass(Pushing)}).num_queued == 1
    assert {receipt.skipped["*"] for receipt in Pushing.receipts} == {"another push is under way"}
    assert Pushing.client.push(model_of()).num_queued == 4


def test_pushes_from_hooks_of_a_training_step(make: Make) -> None:
    """In the forward pass, in the backward pass, where autograd has a thread of its own state, and as the optimizer
    steps."""
    client, model = make(), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    receipts: list[PushReceipt] = []

    def push(*_: Any) -> None:
        receipts.append(client.push(model))

    first = model[0]
    first.register_forward_hook(push)
    first.weight.register_hook(push)
    first.weight.register_post_accumulate_grad_hook(push)
    optimizer.register_step_post_hook(push)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert [receipt.num_queued for receipt in receipts] == [2] * 12
    assert torch.equal(queued(client)["0.weight"], first.weight.detach().bfloat16())


def test_pushes_of_several_threads_give_whole_snapshots(make: Make) -> None:
    """Each thread has a layer of its own and one that all have."""
    client = make()
    client.push({name: torch.zeros(64, 64) for name in ("own0", "own1", "own2", "own3", "shared")})  # room for all

    def work(number: int) -> None:
        for step in range(40):
            value = float(number + step)
            client.push({f"own{number}": torch.full((64, 64), value), "shared": torch.full((64, 64), value)})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copies = queued(client)
    assert set(copies) == {"own0", "own1", "own2", "own3", "shared"} and client.num_errors == 0
    assert all(len(copy.unique()) == 1 for copy in copies.values())
    assert [float(copies[f"own{number}"][0, 0]) for number in range(4)] == [39.0, 40.0, 41.0, 42.0]


def test_empty_optimizer_steps_and_models_without_gradients(make: Make) -> None:
    client, model = make(), nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        assert client.push(model).num_queued == 1
    assert torch.equal(queued(client)["weight"], model.weight.detach().bfloat16())
