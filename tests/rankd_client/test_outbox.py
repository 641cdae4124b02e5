"""The outbox: newest wins per layer, memory is never overwritten while somebody reads it, nothing waits for ever."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.arena import Arena, Memory
from rankd_client.outbox import Outbox
from rankd_client.snapshot import Snapshot

SIZE = 64


@dataclass
class Tracker:
    """A message that ZeroMQ holds until `done`."""

    done: bool = False


def outbox_of(num_regions: int) -> Outbox:
    outbox = Outbox(Arena(num_regions * SIZE, lambda size: Memory(memoryview(bytearray(size)))))
    outbox.grow(num_regions * SIZE, SIZE)
    return outbox


def put(outbox: Outbox, layer: str, step: int, size: int = SIZE) -> Snapshot:
    snapshot = outbox.reserve(layer, step, size, (size // 2, 1))
    assert snapshot is not None
    snapshot.region.view[:] = bytes([step % 256]) * size
    outbox.commit(snapshot)
    return snapshot


def send(outbox: Outbox, num_bytes: int = SIZE, done: bool = True) -> tuple[Snapshot, Tracker]:
    snapshot = outbox.next_unsent()
    assert snapshot is not None
    tracker = Tracker(done)
    outbox.sent(snapshot, num_bytes, tracker)
    return snapshot, tracker


def test_from_reserved_to_recorded() -> None:
    outbox = outbox_of(1)
    assert outbox.settled
    writing = outbox.reserve("a", 1, SIZE, (8, 4))
    assert writing is not None and outbox.next_unsent() is None  # not whole yet
    outbox.commit(writing)
    sent, _ = send(outbox)
    assert sent is writing and outbox.num_unsent == 0 and not outbox.settled
    assert not outbox.settle("a", "weight", 0) and not outbox.settle("b", "weight", 1)
    assert outbox.settle("a", "weight", 1) and outbox.wait_settled(0.0)
    assert outbox.arena.free_bytes == SIZE


def test_a_newer_snapshot_replaces_the_unsent_one_in_its_turn() -> None:
    outbox = outbox_of(3)
    put(outbox, "a", 1)
    put(outbox, "b", 1)
    put(outbox, "a", 2)
    assert outbox.num_replaced == 1
    assert [(send(outbox)[0].layer, step) for step in (2, 1)] == [("a", 2), ("b", 1)]
    assert outbox.next_unsent() is None


def test_one_begun_is_finished_and_the_newer_one_follows() -> None:
    outbox = outbox_of(2)
    put(outbox, "a", 1)
    begun, _ = send(outbox, SIZE // 2)
    newer = put(outbox, "a", 2)
    assert outbox.num_replaced == 0
    assert send(outbox, SIZE // 2)[0] is begun
    assert not outbox.settle("a", "weight", 1)  # nobody waits for it any more
    assert send(outbox)[0] is newer
    assert outbox.settle("a", "weight", 2) and outbox.settled


def test_memory_that_is_still_read_is_not_given_to_anybody() -> None:
    outbox = outbox_of(2)
    put(outbox, "a", 1)
    held, tracker = send(outbox, done=False)
    put(outbox, "a", 2)
    assert bytes(held.region.view) == bytes([1]) * SIZE
    assert outbox.reserve("b", 3, SIZE, (8, 4)) is not None  # takes the place of the unsent "a" of step 2
    assert outbox.num_dropped == 1
    assert outbox.reserve("c", 3, SIZE, (8, 4)) is None  # the other place is still read
    tracker.done = True
    assert outbox.reserve("c", 3, SIZE, (8, 4)) is not None
    assert outbox.has_retired is False


def test_room_comes_from_the_oldest_sent_then_from_the_oldest_unsent() -> None:
    outbox = outbox_of(3)
    for layer, step in (("sent", 3), ("old", 1), ("new", 2)):
        put(outbox, layer, step)
    queue = [send(outbox)[0].layer]
    assert queue == ["sent"]
    put(outbox, "x", 4)  # the room of what was sent and only kept for sending it again
    assert outbox.num_dropped == 0 and not outbox.settle("sent", "weight", 3)
    put(outbox, "y", 5)
    assert outbox.num_dropped == 1
    assert [send(outbox)[0].layer for _ in range(3)] == ["new", "x", "y"]


def test_room_for_each_of_many_layers_does_not_look_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    num_looks = 0
    held = Snapshot.held

    def looked(snapshot: Snapshot) -> bool:
        nonlocal num_looks
        num_looks += 1
        return held(snapshot)

    monkeypatch.setattr(Snapshot, "held", looked)
    num_layers = 200
    outbox = outbox_of(num_layers)
    for i in range(num_layers):
        put(outbox, f"old {i}", 1)
    fits = [outbox.reserve(f"new {i}", 2, SIZE, (8, 4)) is not None for i in range(2 * num_layers)]
    assert fits == [True] * num_layers + [False] * num_layers and outbox.num_dropped == num_layers
    assert num_looks <= 4 * num_layers


def test_what_is_still_read_is_passed_over_and_given_up_later() -> None:
    outbox = outbox_of(3)
    put(outbox, "read", 1)
    _, tracker = send(outbox, done=False)
    put(outbox, "old", 2)
    put(outbox, "new", 3)
    put(outbox, "x", 4)
    assert outbox.num_dropped == 1
    tracker.done = True
    put(outbox, "y", 4)
    assert outbox.num_dropped == 1 and not outbox.settle("read", "weight", 1)
    assert [send(outbox)[0].layer for _ in range(3)] == ["new", "x", "y"]


def test_a_push_does_not_drop_what_it_queued_itself() -> None:
    outbox = outbox_of(2)
    put(outbox, "a", 7)
    put(outbox, "b", 7)
    assert outbox.reserve("c", 7, SIZE, (8, 4)) is None
    assert (outbox.num_dropped, outbox.num_unsent) == (0, 2)


def test_nothing_is_dropped_for_what_would_not_fit_anyway() -> None:
    outbox = outbox_of(2)
    put(outbox, "a", 1)
    assert outbox.reserve("huge", 2, 3 * SIZE, (96, 1)) is None
    assert (outbox.num_dropped, outbox.num_unsent) == (0, 1)


def test_an_abandoned_snapshot_leaves_no_trace() -> None:
    outbox = outbox_of(1)
    writing = outbox.reserve("a", 1, SIZE, (8, 4))
    assert writing is not None
    outbox.abandon(writing)
    assert outbox.settled and outbox.next_unsent() is None and outbox.arena.free_bytes == SIZE


def test_a_new_connection_gets_everything_again_from_the_first_byte() -> None:
    outbox = outbox_of(4)
    put(outbox, "a", 1)
    send(outbox)
    put(outbox, "b", 2)
    send(outbox, SIZE // 2)
    put(outbox, "c", 3)
    outbox.rewind()
    again = [send(outbox)[0] for _ in range(3)]
    assert [(snapshot.layer, snapshot.step) for snapshot in again] == [("a", 1), ("b", 2), ("c", 3)]


def test_a_new_connection_does_not_get_what_was_overtaken() -> None:
    outbox = outbox_of(4)
    put(outbox, "a", 1)
    send(outbox, SIZE // 2)
    put(outbox, "a", 2)
    outbox.rewind()
    assert send(outbox)[0].step == 2 and outbox.next_unsent() is None


def test_a_refused_one_is_not_sent_to_its_end() -> None:
    outbox = outbox_of(2)
    put(outbox, "a", 1)
    _, tracker = send(outbox, SIZE // 2, done=False)
    assert outbox.settle("a", "weight", 1)
    assert outbox.next_unsent() is None and outbox.settled
    assert outbox.has_retired
    tracker.done = True
    outbox.purge()
    assert not outbox.has_retired and outbox.arena.free_bytes == 2 * SIZE


def test_what_cannot_go_now_can_be_replaced() -> None:
    outbox = outbox_of(2)
    put(outbox, "a", 1)
    snapshot = outbox.next_unsent()
    assert snapshot is not None
    outbox.put_back(snapshot)
    put(outbox, "a", 2)
    assert outbox.num_replaced == 1 and send(outbox)[0].step == 2


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["put", "send", "half", "done", "settle", "rewind", "purge"]), st.integers(0, 4)),
    max_size=80,
)


@given(ACTIONS)
def test_no_region_changes_while_it_is_read_and_none_is_lost(actions: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order; ends with everything released."""
    outbox = outbox_of(6)
    reading: list[tuple[memoryview, bytes, Tracker]] = []
    for step, (action, layer) in enumerate(actions):
        if action == "put":
            snapshot = outbox.reserve(f"layer {layer}", step, SIZE, (8, 4))
            if snapshot is not None:
                snapshot.region.view[:] = bytes([step]) * SIZE
                outbox.commit(snapshot)
        elif action in ("send", "half") and (unsent := outbox.next_unsent()) is not None:
            left = unsent.num_bytes - unsent.sent_bytes
            tracker = Tracker()
            reading.append((unsent.region.view, bytes(unsent.region.view), tracker))
            outbox.sent(unsent, left if action == "send" else min(left, SIZE // 2), tracker)
        elif action == "done" and reading:
            reading.pop(layer % len(reading))[2].done = True
        elif action == "settle":
            for earlier in range(step):
                outbox.settle(f"layer {layer}", "weight", earlier)
        elif action == "rewind":
            outbox.rewind()
        else:
            outbox.purge()
        assert all(bytes(view) == content for view, content, _ in reading)
    for _, _, tracker in reading:
        tracker.done = True
    while (unsent := outbox.next_unsent()) is not None:
        outbox.sent(unsent, unsent.num_bytes - unsent.sent_bytes, Tracker(done=True))
    for layer in range(5):
        for step in range(len(actions)):
            outbox.settle(f"layer {layer}", "weight", step)
    outbox.purge()
    assert outbox.settled and outbox.arena.free_bytes == 6 * SIZE


def test_layers_lie_where_they_lay_however_irregularly_they_are_dealt_with() -> None:
    """So that what is copied together from a GPU stays side by side, in few copies."""
    random_ = random.Random(0)
    outbox = outbox_of(10)
    names = [f"layer.{index}" for index in range(5)]
    places: dict[str, set[int]] = {name: set() for name in names}
    for step in range(100):
        for name in names:
            snapshot = outbox.reserve(name, step, SIZE, (SIZE,))
            assert snapshot is not None
            places[name].add(snapshot.region.start)
            outbox.commit(snapshot)
        for _ in range(random_.randrange(6)):
            if outbox.next_unsent() is not None:
                send(outbox)
        for name in random_.sample(names, random_.randrange(6)):
            outbox.settle(name, "weight", step)
    assert all(len(starts) <= 2 for starts in places.values()), places


def test_layers_move_where_what_is_free_lies_in_pieces_between_them() -> None:
    outbox, found = outbox_of(4), list[bool]()
    put(outbox, "odd", 0)
    for step in range(1, 5):
        put(outbox, "a", step, 2 * SIZE)  # at first behind the odd one
        found.append((whole := outbox.reserve("b", step, 2 * SIZE, (SIZE, 1))) is not None)
        if whole is not None:
            outbox.commit(whole)
        while (snapshot := outbox.next_unsent()) is not None:
            send(outbox, snapshot.num_bytes)
            assert outbox.settle(snapshot.layer, "weight", step)
    assert found == [False, True, True, True]
