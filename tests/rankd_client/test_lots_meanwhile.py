"""A push that is handed over as one, and what the link does in the meantime; and Ctrl-C."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lots import Arrival, Tracker, items_of, outbox_of, put, take

from rankd_client.lots import Layout, Lot
from rankd_client.snapshot import Snapshot


@pytest.mark.parametrize("between", ["put back", "rewound"])
@pytest.mark.parametrize("when", ["while it is written", "before it is unpacked"])
def test_what_comes_back_to_the_queue_is_replaced(between: str, when: str) -> None:
    layout = Layout(items_of())
    outbox = outbox_of(3 * layout.num_bytes)
    put(outbox, layout, 1)
    for _ in range(2):
        snapshot = outbox.next_unsent()
        assert snapshot is not None
        outbox.sent(snapshot, snapshot.num_bytes, Tracker())
    last = outbox.next_unsent()
    lot = outbox.reserve_lot(layout, 2)
    assert last is not None and lot is not None
    if when == "before it is unpacked":
        outbox.commit_lot(lot, Arrival())
    if between == "put back":
        outbox.put_back(last)
    else:
        outbox.rewind()
    if when == "while it is written":
        outbox.commit_lot(lot, Arrival())
    assert sorted((layer, step) for layer, step, _ in take(outbox)) == [("w0", 2), ("w1", 2), ("w2", 2)]
    assert outbox.num_replaced == {"put back": 1, "rewound": 3 * (when == "while it is written")}[between]
    assert all(outbox.settle(f"w{i}", "weight", 2) for i in range(3))
    assert outbox.settled and outbox.arena.free_bytes == outbox.arena.num_bytes


def test_ctrl_c_while_it_is_unpacked_and_once_it_was_committed() -> None:
    layout = Layout(items_of())
    outbox = outbox_of(2 * layout.num_bytes)
    lot = put(outbox, layout, 1)
    assert lot is not None
    outbox.abandon_lot(lot, Arrival())  # too late
    lies, num_calls = outbox._room.lies, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise KeyboardInterrupt
        lies(*arguments)

    outbox._room.lies = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        outbox.reserve("other", 2, 8, (1, 2))
    assert outbox.num_unsent >= 3 and not outbox.settled
    assert [(layer, step) for layer, step, _ in take(outbox)] == [("w0", 1), ("w1", 1), ("w2", 1)]
    assert all(outbox.settle(f"w{i}", "weight", 1) for i in range(3))
    assert outbox.settled and outbox.arena.free_bytes == outbox.arena.num_bytes


def test_nobody_finds_nothing_while_it_is_unpacked() -> None:
    """Whoever closes or spools asks without the lock."""
    layout = Layout(items_of())
    outbox = outbox_of(2 * layout.num_bytes)
    put(outbox, layout, 1)
    seen, lies = [], outbox._room.lies

    def asked(*arguments: Any) -> None:
        seen.append((outbox.num_unsent, outbox.settled))
        lies(*arguments)

    outbox._room.lies = asked  # type: ignore[method-assign]
    assert outbox.next_unsent() is not None and len(seen) == 3
    assert all(num_unsent >= 3 and not settled for num_unsent, settled in seen)


def test_returns_are_counted_of_what_failed_too() -> None:
    """As of a snapshot that is abandoned: other processes of the job have no fault."""
    layout = Layout(items_of())
    outbox = outbox_of(2 * layout.num_bytes)
    put(outbox, layout, 10)
    take(outbox)
    lot = outbox.reserve_lot(layout, 5)
    assert lot is not None
    outbox.abandon_lot(lot, Arrival())
    put(outbox, layout, 11)
    snapshot = outbox.next_unsent()
    assert snapshot is not None and snapshot.num_returns == 1


def test_what_a_gpu_still_writes_stays_where_its_successor_finds_no_memory() -> None:
    """As where the link cannot keep up: else neither would come, push after push."""
    items = items_of()
    layout, arrival = Layout(items), Arrival(done=False)
    outbox = outbox_of(layout.num_bytes)
    put(outbox, layout, 1, arrival)
    assert [outbox.reserve(item.name, 2, item.num_bytes, item.shape) for item in items] == [None] * 3
    assert outbox.num_dropped == outbox.num_replaced == 0
    arrival.done = True
    assert [(layer, step) for layer, step, _ in take(outbox)] == [("w0", 1), ("w1", 1), ("w2", 1)]


PUSHING = ("reserve", "commit", "fail", "lot", "single", "arrive")
SENDING = ("begin", "put_back", "send", "settle", "rewind", "purge")


@given(st.lists(st.sampled_from(PUSHING + SENDING), min_size=20, max_size=60))
def test_memory_is_never_given_twice_and_all_comes_back(actions: list[str]) -> None:
    """Whatever the link does between any two steps of a push."""
    items = items_of((3, 64))
    layout = Layout(items)
    outbox = outbox_of(2 * layout.num_bytes)
    arrivals: list[Arrival] = []
    sent: list[Snapshot] = []
    lot: Lot | None = None
    newest = 0
    for step, action in enumerate(actions, 1):
        if action in ("reserve", "lot") and lot is None and (lot := outbox.reserve_lot(layout, step)) is not None:
            for region in layout.regions(lot.region):
                region.view[:] = bytes([step]) * region.num_bytes
        if action in ("commit", "lot", "fail") and lot is not None:
            arrivals.append(Arrival(done=step % 3 > 0))
            if action == "fail":
                outbox.abandon_lot(lot, arrivals[-1])
            else:
                outbox.commit_lot(lot, arrivals[-1])
                newest = lot.step
            lot = None
        elif action == "single" and lot is None:
            if (snapshot := outbox.reserve("w1", step, items[1].num_bytes, (64, 2))) is not None:
                snapshot.region.view[:] = bytes([step]) * snapshot.num_bytes
                outbox.commit(snapshot)
        elif action == "arrive":
            for arrival in arrivals:
                arrival.done = True
        elif action == "begin":
            outbox.next_unsent()
        elif action == "put_back" and (snapshot := outbox.next_unsent()) is not None:
            outbox.put_back(snapshot)
        elif action == "send" and (snapshot := outbox.next_unsent()) is not None:
            assert bytes(snapshot.region.view) == bytes([snapshot.step]) * snapshot.num_bytes
            outbox.sent(snapshot, snapshot.num_bytes, Tracker())
            sent.append(snapshot)
        elif action == "settle" and sent:
            snapshot = sent.pop(0)
            outbox.settle(snapshot.layer, snapshot.role, snapshot.step)
        elif action == "rewind":
            outbox.rewind()
            sent.clear()
        outbox.purge()
    if lot is not None:
        outbox.abandon_lot(lot, Arrival())
    for arrival in arrivals:
        arrival.done = True
    latest: dict[str, int] = {}
    outbox.rewind()
    for layer, step, data in take(outbox):
        assert data == bytes([step]) * len(data)
        latest[layer] = step
        assert outbox.settle(layer, "weight", step)
    outbox.purge()
    assert outbox.settled and outbox.arena.free_bytes == outbox.arena.num_bytes
    assert all(step >= newest for step in latest.values()) or not newest
