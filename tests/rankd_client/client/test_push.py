"""Client.push against nobody at all: what it queues, and what it skips."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from absent_daemon import Make, model_of
from torch import nn

from rankd_client import PushReceipt
from rankd_client.wire import MAX_STEP


def test_a_push_queues_what_is_watched_and_says_why_the_rest_is_not(make: Make) -> None:
    receipt = make().push(nn.Linear(4, 8), step=3)
    assert (receipt.step, receipt.num_queued, receipt.num_replaced, receipt.num_dropped) == (3, 1, 0, 0)
    assert receipt.skipped == {"bias": "fewer than 2 dimensions"}
    assert (receipt.wire_bytes, receipt.device_bytes) == (4 * 8 * 2, 0)
    assert receipt.blocked_seconds > 0


def test_scales_count_in_what_a_push_takes(make: Make) -> None:
    client = make(dtype="int8", max_push_bytes=600)
    receipts = [client.push({"a": torch.ones(4, 100), "b": torch.ones(4, 100)}) for _ in range(2)]
    assert [(receipt.wire_bytes, receipt.skipped) for receipt in receipts] == [
        (4 * (100 + 4), {"b": "budget"}),
        (4 * (100 + 4), {"a": "budget"}),
    ]


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
        assert receipt.num_queued == 1 and receipt.skipped == {"large\x1b": "larger than max_push_bytes"}
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


def test_a_pipelines_stage_without_an_adapter_is_not_said_to_be_sent_by_others(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setitem(sys.modules, "torch.distributed.pipelining", ModuleType("pipelining"))
    client = make()
    for step in range(3):
        assert client.push(model_of(1), step).skipped == {"h.0.weight": "left to process 0"}
    (record,) = caplog.records
    assert "process 1 sends nothing" in record.getMessage() and "MegatronAdapter" in record.getMessage()
    assert client.stats.num_skipped == 0


def test_steps_of_other_integer_types(make: Make) -> None:
    client = make()
    assert [client.push(model_of(), step).step for step in (torch.tensor(3), MAX_STEP)] == [3, MAX_STEP]


def test_empty_models_nan_weights_and_changing_shapes(make: Make) -> None:
    client = make()
    assert client.push(nn.Module()).num_queued == 0
    assert client.push({"w": torch.full((4, 4), torch.nan)}).num_queued == 1
    assert client.push({"w": torch.ones(4, 8)}).num_replaced == 1
    assert client.push({"w": torch.ones(64, 64)}).num_queued == 1  # the arena grows with the model
    assert client.push({"w": torch.ones(0, 4)}).skipped == {"w": "empty"}


def test_memory_stays_within_the_arena(make: Make) -> None:
    client = make(max_push_bytes=1 << 20)
    model = model_of(64, 256)  # 8 MiB on the wire, an eighth of it a push
    for _ in range(50):
        client.push(model)
    assert client._pusher is not None
    assert client._pusher._outbox.arena.num_bytes <= 2 << 20
