"""Who is measured next, in time that is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from rankd.mailbox import Mailbox, Queue
from rankd.records import Snapshot


def snapshot(run: str, layer: str, step: int = 1, num_bytes: int = 1) -> Snapshot:
    return Snapshot(run, layer, step, (1, num_bytes), "float32", "float32", np.zeros(num_bytes, np.uint8))


class Slots:
    """A mailbox, and slots that measure what it hands out; `seconds` of a run's layers are what one takes."""

    def __init__(self, num_slots: int, seconds: Callable[[str], float], max_bytes: int = 1000) -> None:
        self.now = 0.0
        self.box = Mailbox(max_bytes, num_slots, Counter(), clock=lambda: self.now)
        self.seconds = seconds
        self.busy: list[tuple[float, Snapshot]] = []
        self.had: Counter[str] = Counter()
        self.measured: Counter[tuple[str, str]] = Counter()

    def play(self, until: float, push: Callable[[float], list[Snapshot]], every: float = 1.0) -> None:
        next_push = self.now
        while self.now < until:
            if self.now >= next_push:
                for item in push(self.now):
                    self.box.put(item)
                next_push += every
            while (taken := self.box._next()) is not None:
                self.busy.append((self.now + self.seconds(taken.run), taken))
            self.now = min([next_push, *(end for end, _ in self.busy)])
            for end, item in [pair for pair in self.busy if pair[0] <= self.now]:
                self.busy.remove((end, item))
                self.box.done(item, self.seconds(item.run))
                self.had[item.run] += self.seconds(item.run)  # type: ignore[assignment]
                self.measured[item.run, item.layer] += 1


@pytest.mark.parametrize("num_slots", [1, 2, 4])
def test_time_is_shared_not_turns(num_slots: int) -> None:
    """Measurements of 7 s and of 0.1 s wait always."""
    slots = Slots(num_slots, lambda run: 7.0 if run.startswith("@long") else 0.1)

    def push(now: float) -> list[Snapshot]:
        long = [snapshot(f"@long/{i}", f"{j}", int(now)) for i in range(8) for j in range(8)]
        return long + [snapshot("@short/r", f"{j}", int(now)) for j in range(200)]

    slots.play(400.0, push)
    all_long = sum(seconds for run, seconds in slots.had.items() if run.startswith("@long"))
    assert slots.had["@short/r"] == pytest.approx(num_slots * 200.0, rel=0.05)
    assert all_long == pytest.approx(num_slots * 200.0, rel=0.1)
    assert max(slots.had[f"@long/{i}"] for i in range(8)) - min(slots.had[f"@long/{i}"] for i in range(8)) <= 14.0


def test_what_one_does_not_want_others_have() -> None:
    slots = Slots(1, lambda run: 0.5)

    def push(now: float) -> list[Snapshot]:
        greedy = [snapshot(f"@many/{i}", f"{j}", int(now)) for i in range(8) for j in range(4)]
        return [*greedy, snapshot("@one/r", "w", int(now))] if now % 10 == 0 else greedy

    slots.play(1000.0, push)
    assert slots.measured["@one/r", "w"] == 100, "each of its pushes"
    assert sum(slots.had.values()) == pytest.approx(1000.0, rel=0.01)


def test_a_run_that_is_asked_for_is_next_however_long_it_was_away() -> None:
    slots = Slots(1, lambda run: 0.5)
    slots.play(100.0, lambda now: [snapshot("@a/r", f"{j}", int(now)) for j in range(4)])
    for run, layer in (("@a/r", "w"), ("@a/r", "v"), ("@b/r", "w")):
        slots.box.put(snapshot(run, layer))
    taken = slots.box._next()
    assert taken is not None and taken.run == "@b/r"


@pytest.mark.parametrize("room", [3, 11, 24])
def test_no_layer_starves_where_there_is_no_room_for_all(room: int) -> None:
    """A model of 24 layers at once, every 2 s; measuring takes 1 s, and the mailbox has room for some."""
    slots = Slots(1, lambda run: 1.0, max_bytes=room)
    slots.play(240.0, lambda now: [snapshot("r", f"{j}", int(now)) for j in range(24)], every=2.0)
    counts = [slots.measured["r", f"{j}"] for j in range(24)]
    assert min(counts) >= 8 and max(counts) <= 12, counts


def test_queues_tell_of_each_run() -> None:
    slots = Slots(1, lambda run: 1.0, max_bytes=2)
    box = slots.box
    box.put(snapshot("a", "v"))
    box.put(snapshot("a", "v", 2))
    box.put(snapshot("a", "w"))
    box.put(snapshot("a", "x"))
    assert box._next() is not None
    slots.now = 5.0
    assert box.queues() == {"a": Queue(1, 1, 5.0, 0.0, num_superseded=1, num_dropped=1, num_measured=0)}
    taken = snapshot("a", "w")
    box.done(taken, 2.0)
    slots.now = 10.0
    assert box.queues() == {"a": Queue(1, 1, 10.0, pytest.approx(0.2), 1, 1, num_measured=1)}
    box.forget("a")
    assert box.queues(), "something of it waits"
    last = box._next()
    box.forget("a")
    assert last is not None and box.queues(), "or is being measured"
    box.done(last)
    box.forget("a")
    assert box.queues() == {}
    box.put(snapshot("a", "w"))
    assert box._next() is not None
