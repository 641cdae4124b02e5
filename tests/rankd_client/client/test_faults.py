"""The faults of a push stay its own: nothing is raised, each is counted, and the next push goes on."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import torch
from absent_daemon import Make, model_of
from torch import nn

from rankd_client import PushReceipt
from rankd_client.wire import MAX_STEP


@pytest.mark.parametrize("step", [-1, MAX_STEP + 1, 1.5, "7", True, float("nan"), [3]])
def test_a_bad_step_is_a_fault_that_is_counted_and_logged_once(
    make: Make, caplog: pytest.LogCaptureFixture, step: Any
) -> None:
    client = make(strict=False)
    for _ in range(3):
        assert client.push(model_of(), step).num_queued == 0
    assert client.num_errors == 3
    assert len([record for record in caplog.records if "a push failed" in record.getMessage()]) == 1
    assert client.push(model_of(), MAX_STEP).num_queued == 4
    with pytest.raises((ValueError, TypeError)):
        make().push(model_of(), step)


class Breaking(nn.Module):
    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken \x1b[31m model")


@pytest.mark.parametrize("model", [None, 7, [torch.ones(2, 2)], object(), Breaking()])
def test_no_exception_escapes(make: Make, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = make(strict=False)
    assert client.push(model).num_queued == 0 and client.num_errors == 1
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert client.push(model_of()).num_queued == 4


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Mute(nn.Module):
    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        raise Unspeakable


def test_no_exception_escapes_from_telling_of_one(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    client = make(strict=False)
    assert client.push(Mute()).num_queued == 0 and client.num_errors == 1
    assert "Unspeakable" in caplog.text


def test_a_push_that_failed_says_which_step_it_was(make: Make) -> None:
    client = make(strict=False)
    assert [client.push(model).step for model in (None, model_of(), Breaking(), model_of())] == [0, 1, 2, 3]


class Unreadable(torch.Tensor):
    """A tensor whose values nobody can read."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.detach, torch.Tensor.copy_):
            raise NotImplementedError("no values")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_one_layer_that_cannot_be_copied_does_not_cost_the_others(make: Make) -> None:
    client = make(strict=False)
    model = {"a": torch.ones(4, 4), "b": torch.ones(4, 4).as_subclass(Unreadable), "c": torch.ones(4, 4)}
    receipt = client.push(model)
    assert receipt.num_queued == 2 and receipt.skipped == {"b": "copy failed: NotImplementedError"}
    assert client.num_errors == 1
    with pytest.raises(NotImplementedError):
        make().push(model)


class Interrupting(torch.Tensor):
    """A tensor while whose values are read the user has enough."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.detach, torch.Tensor.copy_):
            raise KeyboardInterrupt
        return super().__torch_function__(func, types, args, kwargs or {})


def test_after_ctrl_c_in_a_copy_copies_that_go_on_are_waited_for(make: Make) -> None:
    client, waits = make(), list[str]()
    assert client._pusher is not None
    client._pusher.fence._wait = lambda: waits.append("waited")
    client.push({"a": torch.ones(4, 4)})
    with pytest.raises(KeyboardInterrupt):
        client.push({"a": torch.ones(4, 4), "b": torch.ones(4, 4).as_subclass(Interrupting)})
    assert waits == ["waited", "waited"]
    assert client.push({"a": torch.ones(4, 4)}).num_queued == 1


def test_two_threads_that_push_do_not_disturb_one_another(make: Make) -> None:
    client = make(strict=False)
    receipts: list[PushReceipt] = []

    def work(prefix: str) -> None:
        for _ in range(50):
            receipts.append(client.push({f"{prefix}.{i}": torch.ones(16, 16) for i in range(8)}))

    threads = [threading.Thread(target=work, args=(prefix,)) for prefix in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.num_errors == 0 and len(receipts) == 100
    steps = [receipt.step for receipt in receipts]
    assert sorted(step for step in steps if step is not None) == list(range(100))


def test_a_push_within_a_push_gives_up(make: Make) -> None:
    """From a signal handler, say: the outer one can only go on when the inner one has returned."""
    client = make()
    inner: list[PushReceipt] = []

    class Model(dict[str, torch.Tensor]):
        def items(self) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return super().items()

    before = signal.signal(signal.SIGUSR1, lambda *_: inner.append(client.push(model_of())))
    try:
        assert client.push(Model(model_of())).num_queued == 4
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert inner[0].skipped == {"*": "another push is under way"}
