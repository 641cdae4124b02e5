"""Client.push against nobody at all: what it queues, what it skips, and that its faults stay its own."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankd_client import Client, PushReceipt
from rankd_client.wire import MAX_STEP

Make = Callable[..., Client]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Clients of a daemon that is not there."""
    for name in ("RANKD_MODE", "RANKD_RUN", "RANKD_EVERY_STEPS", "RANKD_ECHO", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    clients = []

    def build(**options: Any) -> Client:
        client = Client("run", f"ipc://{tmp_path}", **{"max_overhead": None, "strict": True, **options})
        clients.append(client)
        return client

    yield build
    for client in clients:
        client.close()


def model_of(num_layers: int = 4, size: int = 8) -> dict[str, torch.Tensor]:
    return {f"h.{i}.weight": torch.full((size, size), float(i + 1)) for i in range(num_layers)}


def test_a_push_queues_what_is_watched_and_says_why_the_rest_is_not(make: Make) -> None:
    receipt = make().push(nn.Linear(4, 8), step=3)
    assert (receipt.step, receipt.num_queued, receipt.num_replaced, receipt.num_dropped) == (3, 1, 0, 0)
    assert receipt.skipped == {"bias": "fewer than 2 dimensions"}
    assert (receipt.wire_bytes, receipt.device_bytes) == (4 * 8 * 2, 0)
    assert receipt.blocked_seconds > 0


def test_a_second_push_replaces_what_nobody_took(make: Make) -> None:
    client = make()
    client.push(model_of(4))
    receipt = client.push(model_of(4))
    assert (receipt.step, receipt.num_queued, receipt.num_replaced) == (1, 4, 4)


def test_steps_count_up_if_left_out(make: Make) -> None:
    client = make()
    steps = [client.push(model_of(), step).step for step in (None, None, 10, None, 4, None)]
    assert steps == [0, 1, 10, 11, 4, 5]


def test_what_is_not_due_is_not_looked_at(make: Make) -> None:
    client = make(every_steps=10)
    client.push(model_of(2), step=0)

    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was looked at")

    receipt = client.push(Untouchable(), step=5)
    assert receipt == PushReceipt(5, skipped={"h.0.weight": "not due", "h.1.weight": "not due"})
    assert client.push(model_of(2), step=11).num_queued == 2


def test_min_interval_seconds(make: Make) -> None:
    client = make(min_interval_seconds=3600.0)
    assert client.push(model_of(1)).num_queued == 1
    assert client.push(model_of(1)).skipped == {"h.0.weight": "not due"}


def test_layers_take_turns_within_max_push_bytes(make: Make) -> None:
    client = make(max_push_bytes=300, priority="h.3.*")
    pushed = []
    for _ in range(4):
        receipt = client.push(model_of(4))
        assert receipt.wire_bytes <= 300
        pushed.append(sorted(set(model_of(4)) - set(receipt.skipped)))
        assert set(receipt.skipped.values()) == {"budget"}
    assert pushed == [
        ["h.0.weight", "h.3.weight"],
        ["h.1.weight", "h.3.weight"],
        ["h.2.weight", "h.3.weight"],
        pushed[0],
    ]


def test_a_layer_larger_than_a_push_is_never_pushed_and_named(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    client = make(max_push_bytes=200)
    for _ in range(3):
        receipt = client.push({"small": torch.ones(8, 8), "large\x1b": torch.ones(20, 20)})
        assert receipt.num_queued == 1 and receipt.skipped == {"large\x1b": "budget"}
    err = capfd.readouterr().err
    assert err.count("tensors watched") == 1 and "2 of 2 tensors watched, 128 bytes a push, estimated cost" in err
    assert "never pushed: large\\x1b (800 bytes is more than max_push_bytes)" in err


def test_the_start_line_comes_at_the_end_where_there_was_one_push_only(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make()
    client.push({"_orig_mod.a": torch.ones(2, 2), "a": torch.ones(2, 2), "b": torch.ones(2, 2)})
    assert capfd.readouterr().err == ""
    client.close()
    err = capfd.readouterr().err
    assert "rankd: 1 of 3 tensors watched, 8 bytes a push" in err
    assert "'_orig_mod.a' and 'a' are both called 'a'" in err


def test_too_little_memory_drops_the_oldest_and_says_so(make: Make) -> None:
    client = make(max_memory_bytes=2 * 128)
    receipt = client.push(model_of(4))
    assert receipt.num_queued == 2 and receipt.skipped == {"h.2.weight": "memory", "h.3.weight": "memory"}
    receipt = client.push(model_of(4))  # the two that had no turn: they take the place of the two that are waiting
    assert receipt.num_dropped == 2 and receipt.num_queued == 2
    assert set(receipt.skipped.values()) == {"memory"} and "h.2.weight" not in receipt.skipped


def test_a_layer_that_memory_cannot_hold(make: Make) -> None:
    receipt = make(max_memory_bytes=64).push({"w": torch.ones(20, 20)})
    assert receipt.skipped == {"w": "memory"} and receipt.num_queued == 0


def test_overhead_is_kept_by_skipping(make: Make) -> None:
    client = make(max_overhead=1e-9)
    first = client.push(model_of(4, 512))
    assert first.num_queued == 4  # the first is always whole
    while (receipt := client.push(model_of(4, 512))).num_queued > 0:  # until the initial 20 ms are spent
        assert receipt.num_queued >= 2 and set(receipt.skipped.values()) <= {"budget"}
    assert receipt.skipped == dict.fromkeys(model_of(4), "budget")


def test_only_process_zero_pushes_and_time_does_not_matter_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    client = make(every_steps=2)
    assert client.push(model_of(1), step=0).skipped == {"h.0.weight": "replica"}
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())
    monkeypatch.setenv("RANK", "0")
    client = make(every_steps=2, max_overhead=1e-9, min_interval_seconds=100.0)
    queued = [client.push(model_of(1, 512), step=step).num_queued for step in range(1, 9)]
    assert queued == [0, 1, 0, 1, 0, 1, 0, 1]


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


def test_steps_of_other_integer_types(make: Make) -> None:
    client = make()
    assert [client.push(model_of(), step).step for step in (torch.tensor(3), MAX_STEP)] == [3, MAX_STEP]


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


@pytest.mark.parametrize("timeout", [-1, 0, -float("inf"), 0.01, True, float("nan"), "1", b"", [1], object()])
def test_flush_and_close_take_any_timeout(make: Make, timeout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd_client.client.FLUSH_SECONDS", 0.01)
    client, wrong = make(strict=False), isinstance(timeout, bool | str | bytes | list) or type(timeout) is object
    wrong = wrong or timeout != timeout
    client.push(model_of())
    assert not client.flush(timeout) and client.num_errors == wrong
    client.close(timeout)
    assert client.num_errors == 2 * wrong
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())
    if wrong:
        with pytest.raises(ValueError, match=r"timeout=.*: expected a number of seconds"):
            strict = make()
            strict.push(model_of())
            strict.flush(timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 10**400, None])
def test_a_timeout_beyond_what_locks_can_wait(make: Make, timeout: Any) -> None:
    client = make()
    client.push(nn.Module())
    assert client.flush(timeout)  # nothing was queued
    client.push(model_of())
    client.close(timeout)
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())


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


def test_empty_models_nan_weights_and_changing_shapes(make: Make) -> None:
    client = make()
    assert client.push(nn.Module()).num_queued == 0
    assert client.push({"w": torch.full((4, 4), torch.nan)}).num_queued == 1
    assert client.push({"w": torch.ones(4, 8)}).num_replaced == 1
    assert client.push({"w": torch.ones(64, 64)}).num_queued == 1  # the arena grows with the model
    assert client.push({"w": torch.ones(0, 4)}).skipped == {"w": "empty"}


def test_disabled_does_nothing_at_all(tmp_path: Path) -> None:
    program = (
        "import sys, threading, rankd_client\n"
        "client = rankd_client.Client(run='x')\n"
        "receipt = client.push(object(), step=-5)\n"
        "assert receipt == rankd_client.PushReceipt(-5), receipt\n"
        "assert client.alerts() == [] and client.flush() and not client.connected\n"
        "client.close()\n"
        "assert threading.active_count() == 1\n"
        "assert not {'torch', 'zmq'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "RANKD_MODE": "disabled", "RANKD_URL": f"ipc://{tmp_path}"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")


def test_importing_brings_nothing_heavy() -> None:
    program = "import sys, rankd_client; print({'torch', 'zmq', 'msgpack', 'numpy', 'asyncio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_offline_says_so_and_does_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKD_MODE", "offline")
    assert make().push(model_of()).num_queued == 0
    assert capfd.readouterr().err.count("\n") == 1


def test_close_ends_the_thread_and_later_calls_do_nothing(make: Make) -> None:
    with make() as client:
        client.push(model_of())
        assert any(thread.name == "rankd-link" for thread in threading.enumerate())
        assert not client.flush(0.01)
    client.close()
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())
    assert client.push(model_of()) == PushReceipt(None)


def test_a_forgotten_client_ends_its_thread(make: Make, tmp_path: Path) -> None:
    client = Client("run", f"ipc://{tmp_path}")
    client.push(model_of())
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "rankd-link")
    forgotten = weakref.ref(client)
    del client
    gc.collect()
    assert forgotten() is None
    thread.join(10.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("closed", [True, False])
def test_no_memory_stays_behind(make: Make, tmp_path: Path, closed: bool) -> None:
    make().push(model_of())  # imports what has something to do at the interpreter's end
    num_callbacks = atexit._ncallbacks()
    client = Client("run", f"ipc://{tmp_path}", echo=False)
    client.push(model_of())
    assert client._pusher is not None and client._pusher._link is not None
    memory = [weakref.ref(client._pusher._outbox), weakref.ref(client._pusher._outbox.arena)]
    thread = client._pusher._link._thread
    if closed:
        client.close()
    else:
        del client
        gc.collect()
        thread.join(10.0)
    gc.collect()
    assert not thread.is_alive() and [reference() for reference in memory] == [None, None]
    assert atexit._ncallbacks() == num_callbacks


def test_an_alert_that_comes_again_is_told_once(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """At each connection a daemon tells what fires."""
    client = make(echo=True)
    assert client._pusher is not None
    alert = {"alert_id": "a", "state": "firing", "stream_id": "s", "severity": "warning", "message": "fell"}
    take = client._pusher._take_alert()
    for again in (alert, alert, {**alert, "state": "resolved"}, alert, {**alert, "stream_id": "t"}):
        take(again)
    assert [(told["state"], told["stream_id"]) for told in client.alerts()] == [
        ("firing", "s"),
        ("resolved", "s"),
        ("firing", "t"),
    ]
    assert capfd.readouterr().err.count("fell") == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_nothing(make: Make) -> None:
    client = make(strict=False)
    client.push(model_of())
    child = os.fork()
    if child == 0:
        ok = client.push(model_of(), 5) == PushReceipt(5) and client.alerts() == [] and client.flush(60.0)
        client.close(60.0)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.push(model_of()).num_replaced == 4  # and the parent goes on


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


def test_memory_stays_within_the_arena(make: Make) -> None:
    client = make(max_push_bytes=1 << 20)
    model = model_of(64, 256)  # 8 MiB on the wire, an eighth of it a push
    for _ in range(50):
        client.push(model)
    assert client._pusher is not None
    assert client._pusher._outbox.arena.num_bytes <= 2 << 20


def test_push_does_not_wait_while_the_link_holds_a_stuck_connection(make: Make, tmp_path: Path) -> None:
    """A socket that accepts and never answers."""
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "push.sock"))
        server.listen()
        client = make()
        for _ in range(20):
            assert client.push(model_of()).num_queued == 4
        started = time.monotonic()
        client.close(60.0)
        assert time.monotonic() - started < 30.0  # nobody is connected: the timeout is not waited for
