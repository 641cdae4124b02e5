"""All that a push takes, as one: what an outbox makes of it is what it makes of its snapshots one by one."""

from __future__ import annotations

from lots import SIZES, Arrival, Tracker, items_of, outbox_of, put, take

from rankd_client.lots import Layout, ids_of


def test_side_by_side_and_aligned() -> None:
    items = items_of()
    layout = Layout(items)
    assert layout.ids == ids_of(items) != ids_of(items_of())
    outbox = outbox_of(2 * layout.num_bytes)
    lot = put(outbox, layout, 1)
    assert lot is not None
    regions = layout.regions(lot.region)
    assert layout.regions(lot.region) is regions  # hardly anything is done again
    assert [region.num_bytes for region in regions] == [8 * size for size in SIZES]
    ends = [region.start + region.reserved_bytes for region in regions]
    assert [lot.region.start, *ends[:-1]] == [region.start for region in regions]
    assert ends[-1] == lot.region.start + lot.region.reserved_bytes and all(end % 64 == 0 for end in ends)


def test_it_is_sent_recorded_and_given_back() -> None:
    layout, arrival = Layout(items_of()), Arrival(done=False)
    outbox = outbox_of(2 * layout.num_bytes)
    put(outbox, layout, 7, arrival)
    assert outbox.num_unsent == 3 and not outbox.settled and outbox.has_arriving
    assert outbox.next_unsent() is None  # it has not arrived
    arrival.done = True
    assert take(outbox) == [(f"w{i}", 7, bytes([7]) * (8 * size)) for i, size in enumerate(SIZES)]
    assert outbox.num_unsent == 0 and not outbox.has_arriving and not outbox.settled
    assert all(outbox.settle(f"w{i}", "weight", 7) for i in range(3))
    assert outbox.settled and outbox.arena.free_bytes == outbox.arena.num_bytes


def test_what_awaits_its_record_is_overtaken_and_lots_take_turns_in_two_places() -> None:
    layout = Layout(items_of())
    outbox = outbox_of(2 * layout.num_bytes)
    places = []
    for step in range(1, 7):
        lot = put(outbox, layout, step)
        assert lot is not None
        places.append(lot.region.start)
        assert [at for _, at, _ in take(outbox)] == [step] * 3
    assert len(set(places)) == 2 and places[::2] == places[:1] * 3
    assert outbox.num_replaced == outbox.num_dropped == 0
    assert not outbox.settle("w0", "weight", 5) and outbox.settle("w0", "weight", 6)


def test_none_where_some_are_unsent_and_they_go_one_by_one() -> None:
    items = items_of()
    layout = Layout(items)
    outbox = outbox_of(2 * layout.num_bytes)
    put(outbox, layout, 1)
    assert put(outbox, layout, 2) is None
    for item in items:
        snapshot = outbox.reserve(item.name, 2, item.num_bytes, item.shape)
        assert snapshot is not None
        snapshot.region.view[:] = bytes([2]) * item.num_bytes
        outbox.commit(snapshot)
    assert outbox.num_replaced == 3
    assert [(layer, step) for layer, step, _ in take(outbox)] == [("w0", 2), ("w1", 2), ("w2", 2)]
    assert put(outbox, layout, 3) is not None


def test_what_was_sent_makes_room_but_for_what_is_held() -> None:
    layout = Layout(items_of())
    outbox = outbox_of(layout.num_bytes)  # of one alone
    put(outbox, layout, 1)
    take(outbox)
    assert put(outbox, layout, 2) is not None  # the daemon has the first ones
    held = Tracker(done=False)
    while (snapshot := outbox.next_unsent()) is not None:
        outbox.sent(snapshot, snapshot.num_bytes, held)
    assert put(outbox, layout, 3) is None
    held.done = True
    assert put(outbox, layout, 3) is not None


def test_other_layers_records_are_not_given_up() -> None:
    layout = Layout(items_of())
    outbox = outbox_of(layout.num_bytes + 64)
    other = outbox.reserve("other", 1, 8, (1, 2))
    assert other is not None
    outbox.commit(other)
    take(outbox)
    put(outbox, layout, 1)
    take(outbox)
    put(outbox, layout, 2)
    assert outbox.settle("other", "weight", 1)


def test_what_failed_is_free_once_the_gpu_has_let_go_of_it() -> None:
    layout, arrival = Layout(items_of()), Arrival(done=False)
    outbox = outbox_of(layout.num_bytes)
    lot = outbox.reserve_lot(layout, 1)
    assert lot is not None
    outbox.abandon_lot(lot, arrival)
    assert outbox.settled and outbox.reserve_lot(layout, 2) is None
    arrival.done = True
    assert outbox.reserve_lot(layout, 2) is not None


def test_a_new_connection_gets_them_again() -> None:
    layout = Layout(items_of())
    outbox = outbox_of(2 * layout.num_bytes)
    put(outbox, layout, 1)
    take(outbox)
    put(outbox, layout, 2)
    outbox.rewind()
    assert [(layer, step) for layer, step, _ in take(outbox)] == [("w0", 2), ("w1", 2), ("w2", 2)]
    outbox.rewind()
    assert [step for _, step, _ in take(outbox)] == [2, 2, 2]
