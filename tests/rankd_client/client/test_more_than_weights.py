"""push(also=...) and push_measurements() against nobody at all: what is queued and skipped, and that nothing breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from absent_daemon import Make, model_of

from rankd_client import Client, PushReceipt
from rankd_client.wire import MAX_STEP

NUMBERS = {"effective_rank": 3.0}


class Untouchable:
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was looked at")


def of_64_bytes(count: int) -> dict[str, Any]:
    return {f"f{i}": torch.ones(4, 8) for i in range(count)}


def test_what_is_pushed_beside_a_model_goes_with_it_and_is_named_by_its_role(make: Make) -> None:
    model = model_of(2)
    also = {"h.0.weight": ("gradient", torch.ones(8, 8)), "f": torch.ones(4, 8), "b": torch.ones(3)}
    receipt = make().push(model, 3, also=also)
    assert (receipt.num_queued, receipt.wire_bytes) == (4, 3 * 128 + 64)
    assert receipt.skipped == {"b (feature)": "fewer than 2 dimensions"}


def test_it_goes_first_within_max_push_bytes_and_takes_turns(make: Make) -> None:
    client = make(max_push_bytes=150)
    for left in ("f2", "f1", "f2", "f1"):
        receipt = client.push(model_of(2), also=of_64_bytes(3))
        assert receipt.wire_bytes == 2 * 64 and receipt.skipped[f"{left} (feature)"] == "budget"
        assert receipt.skipped["h.0.weight"] == receipt.skipped["h.1.weight"] == "budget"
    client = make(max_push_bytes=64 + 128)
    for left in ("h.1.weight", "h.0.weight"):
        assert client.push(model_of(2), also=of_64_bytes(1)).skipped == {left: "budget"}
    receipt = client.push({}, also={"large": torch.ones(20, 20), **of_64_bytes(4)})
    assert receipt.skipped == {"large (feature)": "larger than max_push_bytes", "f0 (feature)": "budget"}


def test_it_is_not_looked_at_where_nothing_is_due(make: Make) -> None:
    client = make(every_steps=10)
    client.push(model_of(1), 0, also={"f": torch.ones(2, 2)})
    receipt = client.push(model_of(1), 5, also=Untouchable())  # type: ignore[arg-type]
    assert receipt == PushReceipt(5, skipped={"h.0.weight": "not due"})


@pytest.mark.parametrize("also", [7, "x", [torch.ones(2, 2)], torch.ones(2, 2), {}, {"x": None}, {3: torch.ones(2, 2)}])
def test_wrong_use_costs_the_weights_nothing(make: Make, also: Any) -> None:
    receipt = make(strict=True).push(model_of(2), also=also)
    assert receipt.num_queued == 2 and len(receipt.skipped) == (also != {} if isinstance(also, dict) else 1)


def test_in_a_job_process_0_pushes_it_and_weights_are_chosen_as_without(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    chosen = set()
    for process, also in (("0", of_64_bytes(3)), ("1", of_64_bytes(1)), ("0", None)):
        monkeypatch.setenv("RANK", process)
        receipt = make(max_push_bytes=2 * 128).push(model_of(4), 0, also=also)
        weights = {name: receipt.skipped.get(name, "pushed") for name in model_of(4)}
        done = "replica" if process == "1" else "pushed"
        assert sorted(weights.values()) == sorted([done, done, "budget", "budget"])
        chosen.add(tuple(name for name, what in weights.items() if what == done))
        features = {label for label, reason in receipt.skipped.items() if "feature" in label}
        assert features == ({"f0 (feature)"} if process == "1" else set())
    assert len(chosen) == 1


def test_a_layer_that_is_refused_in_one_role_goes_in_another(make: Make) -> None:
    client = make()
    client.push(model_of(1))
    assert client._pusher is not None and client._pusher._link is not None
    client._pusher._link.refused["h.0.weight (gradient)"] = "too_many_layers"
    receipt = client.push(model_of(1), also={"h.0.weight": ("gradient", torch.ones(8, 8))})
    assert receipt.num_queued == 1
    assert receipt.skipped == {"h.0.weight (gradient)": "refused: too_many_layers"}


# Numbers that a trainer computed ------------------------------------------------------------------------------------


def test_measurements_are_queued_and_waited_for(make: Make) -> None:
    client = make()
    receipt = client.push_measurements({"w": NUMBERS, "v": {"loss": 1.0}}, 5)
    assert (receipt.step, receipt.num_queued, receipt.num_dropped) == (5, 1, 0)
    assert list(receipt.skipped) == ["v"] and receipt.blocked_seconds > 0
    assert not client.flush(0.01) and client.num_errors == 0


def test_their_step_is_that_of_the_newest_push_or_counts_up(make: Make) -> None:
    client = make(every_steps=10)
    assert [client.push_measurements({"w": NUMBERS}).step for _ in range(2)] == [0, 1]
    assert client.push_measurements({"w": NUMBERS}, 7).step == 7
    client.push(model_of(1), 40)
    client.push(model_of(1))
    assert client.push_measurements({"w": NUMBERS}).step == 41
    assert client.push(model_of(1)).step == 42


@pytest.mark.parametrize("step", [-1, MAX_STEP + 1, True, 1.5])
def test_a_wrong_step_is_a_fault_and_does_not_raise(make: Make, step: Any) -> None:
    client = make(strict=False)
    assert client.push_measurements({"w": NUMBERS}, step).num_queued == 0
    assert client.num_errors == 1
    with pytest.raises((ValueError, TypeError)):
        make(strict=True).push_measurements({"w": NUMBERS}, step)


def test_in_a_job_process_0_sends_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert make().push_measurements({"w": NUMBERS}, 1).skipped == {"*": "replica"}


def test_a_client_that_is_off_or_closed_takes_none(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make()
    client.close()
    assert client.push_measurements({"w": NUMBERS}, 3) == PushReceipt(3)
    monkeypatch.setenv("RANKD_MODE", "disabled")
    assert Client("r").push_measurements({"w": NUMBERS}, 3) == PushReceipt(3)


def test_memory_stays_within_its_bound_while_nobody_listens(make: Make) -> None:
    client = make()
    assert client._pusher is not None
    client._pusher._outbox.reports._max_bytes = 10_000
    receipts = [client.push_measurements({f"h.{i}": NUMBERS for i in range(10)}, step) for step in range(20)]
    assert all(receipt.num_queued == 10 for receipt in receipts)
    reports = client._pusher._outbox.reports
    assert sum(receipt.num_dropped for receipt in receipts) == reports.num_dropped == 200 - reports.num_unsent > 0


def test_the_start_line_says_which_weights_have_masters_and_why_others_go_themselves(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    model = {name: torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for name in "abc"}
    model["a"].main_param = torch.ones(4, 4)  # type: ignore[attr-defined]
    model["b"].main_param = torch.ones(8)  # type: ignore[attr-defined]
    client = make(source="master")
    client.push(model)
    assert client.stats.num_masters == 1
    client.close()
    err = capfd.readouterr().err
    assert "3 of 3 tensors watched (1 of them float32 masters)" in err
    assert "pushed themselves: b (master of shape (8,), a shard)" in err


def test_source_is_one_of_two(make: Make) -> None:
    assert make(source="master").config.source == "master"
    with pytest.raises(ValueError, match="source='both': expected one of param, master"):
        make(source="both")
