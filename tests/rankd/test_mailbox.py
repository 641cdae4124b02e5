import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankd.mailbox import Mailbox, Superseded
from rankd.quota import NO_QUOTA, Quota
from rankd.records import Snapshot


def snapshot(layer: str = "w", step: int = 1, num_bytes: int = 4, run: str = "r", **flags: Any) -> Snapshot:
    num_bytes = 0 if flags else num_bytes
    return Snapshot(
        run, layer, step, (1, max(num_bytes, 1)), "float32", "float32", np.zeros(num_bytes, np.uint8), **flags
    )


def mailbox(max_bytes: int = 100, num_slots: int = 9) -> Mailbox:
    return Mailbox(max_bytes, num_slots, Counter())


async def handed_out(box: Mailbox) -> list[Snapshot]:
    """All that `get` gives without waiting."""
    taken = []
    while True:
        task = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            return taken
        if (item := task.result()) is None:
            return taken
        taken.append(item)


async def test_newest_wins_and_keeps_the_place_in_line() -> None:
    box = mailbox()
    old, other, new = snapshot("a", 1), snapshot("b", 1), snapshot("a", 2)
    assert box.put(old) == [] and box.put(other) == []
    assert box.put(new) == [Superseded(old, 2)]
    assert box.num_bytes == 8 and len(box) == 2
    assert await handed_out(box) == [new, other]
    assert box.num_bytes == 0 and box.counters == {"dropped_superseded": 1}


async def test_roles_of_a_layer_are_apart() -> None:
    box = mailbox()
    weight = snapshot("a", 1)
    gradient = Snapshot("r", "a", 1, (1, 4), "float32", "", np.zeros(4, np.uint8), role="gradient")
    box.put(weight)
    assert box.put(gradient) == []
    assert await handed_out(box) == [weight, gradient]


async def test_notices_go_first_need_no_slot_and_are_never_displaced() -> None:
    box = mailbox(max_bytes=4, num_slots=1)
    first, nan, zero = snapshot("a", 1), snapshot("b", 2, finite=False), snapshot("b", 3, zero=True)
    box.put(first)
    assert await handed_out(box) == [first]
    waiting = snapshot("c", 1)
    box.put(waiting)
    box.put(nan)
    box.put(zero)
    assert box.put(snapshot("b", 4)) == [Superseded(waiting, None)]  # no room for both, but the notices stay
    again = snapshot("b", 5, finite=False)
    assert box.put(again) == [Superseded(again, 2)], "one notice a layer and kind; the first is the news"
    assert await handed_out(box) == [nan, zero]
    box.done(nan)
    assert await handed_out(box) == [], "a notice that is done frees no slot"
    box.done(first)
    assert [item.step for item in await handed_out(box)] == [4]


async def test_runs_are_served_in_turn() -> None:
    box = mailbox()
    for layer in "abc":
        box.put(snapshot(layer, run="many"))
    box.put(snapshot("z", run="one"))
    assert [item.run for item in await handed_out(box)] == ["many", "one", "many", "many"]


async def test_namespaces_are_served_in_turn_however_many_runs_one_has() -> None:
    box = mailbox()
    for number in range(3):
        box.put(snapshot("w", run=f"@ns/{number}"))
    for layer in "abc":
        box.put(snapshot(layer, run="one"))
    runs = [item.run for item in await handed_out(box)]
    assert runs == ["@ns/0", "one", "@ns/1", "one", "@ns/2", "one"]


async def test_full_takes_from_the_namespace_that_holds_most_however_many_runs_it_has() -> None:
    box = mailbox(max_bytes=20)
    for number in range(4):
        box.put(snapshot("w", 1, 3, run=f"@ns/{number}"))
    assert [item.snapshot.run for item in box.put(snapshot("w", 1, 9, run="one"))] == ["@ns/0"]


def huge(layer: str, run: str) -> Snapshot:
    """Of a matrix that takes minutes (its bytes do not matter here)."""
    return Snapshot(run, layer, 1, (1 << 14, 1 << 14), "float32", "float32", np.zeros(1, np.uint8))


LAST_SLOT = [
    ({"@a/1"}, ["@a/1", "@a/1"], 2),  # alone
    ({"@a/1", "@b/1"}, ["@a/1", "@a/1"], 1),
    ({"@a/1", "@a/2", "@b/1"}, ["@a/1", "@a/2"], 1),
    ({"@a/1", "@b/1"}, ["@a/1", "@b/1"], 2),
    ({"@b/1"}, ["@a/1", "@a/1"], 1),  # whose own trainer is gone
    ({"1", "2"}, ["1", "1"], 1),  # of one namespace: the runs
    ({"1", "2"}, ["1", "2"], 2),
    (set(), ["1", "1"], 2),
]


@pytest.mark.parametrize(("connected", "runs", "num_taken"), LAST_SLOT)
async def test_the_last_slot_stays_within_reach_of_others(connected: set[str], runs: list[str], num_taken: int) -> None:
    box = Mailbox(1000, 2, Counter(), connected=lambda: connected)
    for number, run in enumerate(runs):
        box.put(huge(f"huge {number}", run))
    taken = await handed_out(box)
    assert [item.run for item in taken] == runs[:num_taken]
    if num_taken == 1:
        box.put(short := snapshot("short", run=runs[1]))
        assert await handed_out(box) == [short], "a short one holds nobody up"
        box.done(short)
        box.put(other := huge("huge", "@b/1" if "@b/1" in connected else "2"))
        assert await handed_out(box) == [other]
        for item in (*taken, other):
            box.done(item)
        assert [item.layer for item in await handed_out(box)] == ["huge 1"]


async def test_one_slot_alone_is_everybodys() -> None:
    box = Mailbox(1000, 1, Counter(), connected=lambda: {"@a/1", "@b/1"})
    box.put(item := huge("huge", "@a/1"))
    assert await handed_out(box) == [item]


async def test_a_layer_being_measured_is_passed_over() -> None:
    box = mailbox()
    first, second, other = snapshot("huge", 1), snapshot("huge", 2), snapshot("small", 1)
    box.put(first)
    assert await handed_out(box) == [first]
    box.put(second)
    box.put(other)
    assert await handed_out(box) == [other]
    box.done(first)
    assert await handed_out(box) == [second]


async def test_hands_out_no_more_than_the_slots() -> None:
    box = mailbox(num_slots=2)
    for layer in "abcd":
        box.put(snapshot(layer))
    taken = await handed_out(box)
    assert len(taken) == 2
    box.done(taken[1])
    assert len(await handed_out(box)) == 1


async def test_full_drops_the_oldest_of_the_run_that_holds_most() -> None:
    box = mailbox(max_bytes=20)
    small = snapshot("s", 1, 4, run="small")
    large = [snapshot(layer, 1, 8, run="large") for layer in "ab"]
    for item in (small, *large):
        assert box.put(item) == []
    newest = snapshot("c", 1, 8, run="large")
    assert box.put(newest) == [Superseded(large[0], None)]
    assert box.num_bytes == 20 and box.counters["dropped_for_room"] == 1
    too_large = snapshot("d", 1, 21, run="huge")
    assert Superseded(too_large, None) in box.put(too_large)
    assert box.num_bytes <= 20


async def test_get_waits_for_a_put_and_close_ends_it() -> None:
    box = mailbox(num_slots=1)
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    item, later = snapshot("a", 1), snapshot("a", 2)
    box.put(item)
    assert await waiting is item
    box.put(later)
    box.close()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    assert not waiting.done(), "what was put before close is still handed out, when its layer is free"
    box.done(item)
    assert await waiting is later
    assert await box.get() is None


KINDS: list[dict[str, bool]] = [{}, {}, {}, {"finite": False}, {"zero": True}]
RUNS = ["x", "y", "@n/x", "@n/y", "@m/x"]
PUTS = st.tuples(st.sampled_from(RUNS), st.sampled_from("abc"), st.integers(1, 9), st.sampled_from(KINDS))


@given(
    st.lists(PUTS | st.just("get") | st.just("done"), max_size=40),
    st.integers(1, 3),
    st.frozensets(st.sampled_from(RUNS)),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_silently(operations: list[Any], num_slots: int, connected: frozenset[str]) -> None:
    async def play() -> None:
        box = Mailbox(20, num_slots, Counter(), connected=lambda: connected)
        put, taken, displaced, measuring = [], [], [], []

        async def take() -> None:
            for item in await handed_out(box):
                taken.append(item)
                if item.noticed:
                    box.done(item)
                else:
                    assert item.key not in [other.key for other in measuring]
                    measuring.append(item)
            assert len(measuring) <= num_slots

        for step, operation in enumerate(operations):
            if operation == "get":
                await take()
            elif operation == "done":
                if measuring:
                    box.done(measuring.pop(0))
            else:
                run, layer, num_bytes, flags = operation
                item = snapshot(layer, step, num_bytes, run, **flags)
                put.append(replace(item, shape=(1 << 14, 1 << 14)) if num_bytes > 6 else item)  # a long one
                displaced += [item.snapshot for item in box.put(put[-1])]
            assert box.num_bytes <= box.max_bytes
        box.close()
        while len(box) or measuring:
            await take()
            if measuring:
                box.done(measuring.pop())
        assert await box.get() is None
        assert box.num_bytes == 0
        assert sorted(map(id, taken + displaced)) == sorted(map(id, put))
        for key in {item.key for item in put}:
            for noticed in (False, True):
                steps = [item.step for item in taken if item.key == key and item.noticed is noticed]
                assert steps == sorted(steps)

    asyncio.run(play())


async def test_a_namespace_over_its_quota_loses_its_own() -> None:
    def quota(namespace: str) -> Quota:
        return Quota(max_bytes=10) if namespace == "ns" else NO_QUOTA

    box = Mailbox(1000, 9, Counter(), quota)
    others = snapshot("a", 1, 40, run="other")
    first, second, third = (
        snapshot(layer, 1, 4, run=run) for layer, run in (("a", "@ns/x"), ("b", "@ns/x"), ("a", "@ns/y"))
    )
    assert box.put(others) == box.put(first) == box.put(second) == []
    assert box.put(third) == [Superseded(first, None)]
    assert box.num_bytes == 48 and box.counters == {"dropped_for_room": 1}
    assert box.put(snapshot("c", 1, 400, run="other")) == [], "whose namespace has no quota"


async def test_lag_is_since_when_a_layer_has_not_been_measured() -> None:
    now = 100.0
    box = Mailbox(8, 1, Counter(), clock=lambda: now)
    box.put(snapshot("notice", finite=False))
    assert box.lag_seconds == 0
    box.put(snapshot("a", 1))
    now = 103.0
    box.put(snapshot("b", 1))
    box.put(snapshot("a", 2))
    assert box.lag_seconds == 3, "newer news of a are not measured either"
    taken = await handed_out(box)
    now = 110.0
    assert box.lag_seconds == 10, "while it is being measured"
    box.done(taken[-1])
    assert box.lag_seconds == 7
    box.put(snapshot("c", 1, num_bytes=8))  # b gives way
    now = 112.0
    assert box.lag_seconds == 2
    for item in await handed_out(box):
        box.done(item)
    assert box.lag_seconds == 0


async def test_what_is_unfinished_and_what_is_done_are_counted() -> None:
    box = mailbox(num_slots=1)
    box.put(snapshot("a"))
    box.put(snapshot("b"))
    (taken,) = await handed_out(box)
    assert (box.num_unfinished, box.num_done) == (2, 0)
    box.done(taken)
    assert (box.num_unfinished, box.num_done) == (1, 1)
