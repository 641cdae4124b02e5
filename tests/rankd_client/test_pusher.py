"""What pushes cost the trainer, by a clock that only the pushes themselves and the steps move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from rankd_client import Client, client, pusher

PUSH_SECONDS, STEP_SECONDS = 0.1, 0.01


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Looking at a model takes PUSH_SECONDS, and nothing else takes any time."""
    clock = Clock()
    look = pusher.Watcher.look

    def slow(*arguments: Any) -> Any:
        clock.seconds += PUSH_SECONDS
        return look(*arguments)

    monkeypatch.setattr(pusher.Watcher, "look", slow)
    for module in (client, pusher):
        monkeypatch.setattr(module, "time", clock)
    for name in ("RANKD_MODE", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return clock


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Client]]:
    clients = []

    def build(**options: Any) -> Client:
        clients.append(Client("run", f"ipc://{tmp_path}", echo=False, **options))
        return clients[-1]

    yield build
    for built in clients:
        built.close()


class Broken(Mapping[str, torch.Tensor]):
    """A model that cannot be read."""

    def __getitem__(self, name: str) -> torch.Tensor:
        raise RuntimeError("broken")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("broken")

    def __len__(self) -> int:
        return 1


MODEL = {f"h.{i}": torch.ones(8, 8) for i in range(4)}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (MODEL, {}),
        (MODEL, {"max_push_bytes": 1}),
        (MODEL, {"max_push_bytes": 128}),
        (MODEL, {"max_memory_bytes": 1}),
        (MODEL, {"exclude": "*"}),
        ({"bias": torch.ones(8)}, {}),
        ({}, {}),
        (Broken(), {}),
        (None, {}),
    ],
    ids=["whole", "nothing fits", "one fits", "no memory", "excluded", "vectors", "empty", "broken", "no model"],
)
@pytest.mark.parametrize("max_overhead", [0.005, 0.5])
def test_max_overhead_is_kept_whatever_comes_of_the_pushes(
    make: Callable[..., Client], clock: Clock, model: Any, options: dict[str, Any], max_overhead: float
) -> None:
    trainer = make(max_overhead=max_overhead, **options)
    began, blocked_seconds, num_pushes = clock.seconds, 0.0, 0
    for _ in range(6_000):
        clock.seconds += STEP_SECONDS
        before = clock.seconds
        trainer.push(model)
        blocked_seconds += clock.seconds - before
        num_pushes += clock.seconds > before
    assert num_pushes > 1
    assert blocked_seconds <= max_overhead * (clock.seconds - began) + PUSH_SECONDS + 0.02


def test_a_push_that_fails_counts_in_what_pushing_costs(make: Callable[..., Client], clock: Clock) -> None:
    trainer = make(max_overhead=None)
    trainer.push(MODEL, 0)
    for step in range(1, 11):
        clock.seconds += STEP_SECONDS
        trainer.push(Broken(), step)
    stats = trainer.stats
    assert (trainer.num_errors, stats.num_pushes, stats.num_due) == (10, 11, 11)
    assert stats.blocked_seconds == pytest.approx(11 * PUSH_SECONDS)
    assert stats.push_seconds == pytest.approx(PUSH_SECONDS)
    assert set(stats.ages_steps.values()) == {10}, "nothing went with them"


@pytest.mark.parametrize(
    ("options", "due_after"),
    [
        ({}, lambda last: last + 1),
        ({"every_steps": 10}, lambda last: 10 * (last // 10 + 1)),
        ({"min_interval_seconds": PUSH_SECONDS + 9.5 * STEP_SECONDS}, lambda last: last + 10),
    ],
    ids=["each", "every_steps", "min_interval_seconds"],
)
def test_what_receipts_say_of_steps_that_are_due_and_not_is_what_stats_count(
    make: Callable[..., Client], clock: Clock, options: dict[str, Any], due_after: Callable[[int], int]
) -> None:
    """A push takes dozens of steps to be earned back, and is due before."""
    trainer = make(max_overhead=0.2, **options)
    told = []
    for step in range(301):
        receipt = trainer.push(MODEL, step)
        told.append("pushed" if receipt.num_queued else receipt.skipped["h.0"])
        assert receipt.num_queued or len(set(receipt.skipped.values())) == 1
        clock.seconds += STEP_SECONDS
    pushed = [step for step, reason in enumerate(told) if reason == "pushed"]
    assert len(pushed) > 3
    for last, following in pairwise(pushed):
        due = due_after(last)
        assert told[last + 1 : following] == ["not due"] * (due - last - 1) + ["budget"] * (following - due)
    stats = trainer.stats
    assert (stats.num_pushes, stats.num_skipped) == (len(pushed), told.count("budget"))
    assert stats.num_due == stats.num_pushes + stats.num_skipped


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_is_left_out_at_many_steps_is_not_looked_at_or_listed_anew(
    make: Callable[..., Client], clock: Clock, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    if rank == "1":
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
    for options in ({}, {"exclude": "*"}):
        trainer = make(max_overhead=1e-6, **options)
        trainer.push(MODEL)
        before = clock.seconds
        first, second = trainer.push(MODEL).skipped, trainer.push(MODEL).skipped
        assert first is second and clock.seconds == before
        names = [] if options else MODEL
        assert dict(first) == dict.fromkeys(names, "replica" if rank == "1" else "budget")


def test_whose_turn_it_is_counts_the_push_that_was_just_made(make: Callable[..., Client]) -> None:
    """Half of a model is not enough for a layer of two thirds of it: the budget saves up for that."""
    trainer = make(max_overhead=0.005, max_push_bytes=128)
    assert trainer.push({"small": torch.ones(4, 8), "large": torch.ones(8, 8)}).skipped == {"large": "budget"}
    assert trainer._pusher is not None and trainer._pusher._turns.least_bytes == 128
