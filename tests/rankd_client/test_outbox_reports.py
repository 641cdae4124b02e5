"""Snapshots and reports in one outbox: of one layer and role they take turns, of others they do not know each other."""

from __future__ import annotations

from rankd_client.arena import Arena, Memory
from rankd_client.outbox import Outbox

SIZE = 64


class Done:
    done = True


def make() -> Outbox:
    outbox = Outbox(Arena(4 * SIZE, lambda size: Memory(memoryview(bytearray(size)))))
    outbox.grow(4 * SIZE, SIZE)
    return outbox


def push(outbox: Outbox, step: int, layer: str = "w", role: str = "weight") -> None:
    snapshot = outbox.reserve(layer, step, SIZE, (8, 4), role)
    assert snapshot is not None
    outbox.commit(snapshot)


def report(outbox: Outbox, step: int, layer: str = "w", role: str = "weight") -> None:
    outbox.reports.put(layer, role, step, {"effective_rank": 1.0})


def send(outbox: Outbox) -> list[tuple[str, int]]:
    """All that may go now."""
    sent = []
    while (snapshot := outbox.next_unsent()) is not None:
        outbox.sent(snapshot, SIZE, Done())
        sent.append(("snapshot", snapshot.step))
    while (found := outbox.reports.next()) is not None:
        outbox.reports.sent(found)
        sent.append(("report", found.step))
    return sent


def test_neither_goes_before_what_came_before_it_is_dealt_with() -> None:
    outbox = make()
    report(outbox, 1)
    push(outbox, 2)
    report(outbox, 3)
    assert send(outbox) == [("report", 1)]
    outbox.settle("w", "weight", 1)
    assert send(outbox) == [("snapshot", 2)]
    outbox.rewind()
    assert send(outbox) == [("snapshot", 2)]
    assert not outbox.settled and outbox.settle("w", "weight", 2)
    assert send(outbox) == [("report", 3)]
    outbox.settle("w", "weight", 3)
    assert outbox.settled


def test_a_snapshot_that_is_replaced_holds_up_nothing() -> None:
    outbox = make()
    push(outbox, 1)
    report(outbox, 2)
    push(outbox, 3)  # in the place of 1
    assert send(outbox) == [("report", 2)]
    outbox.settle("w", "weight", 2)
    assert send(outbox) == [("snapshot", 3)]


def test_other_layers_and_roles_do_not_wait() -> None:
    outbox = make()
    report(outbox, 1)
    push(outbox, 2, role="gradient")
    push(outbox, 2, layer="v")
    assert send(outbox) == [("snapshot", 2), ("snapshot", 2), ("report", 1)]


def test_an_answer_settles_what_has_its_name() -> None:
    outbox = make()
    report(outbox, 1)
    send(outbox)
    assert outbox.num_unsent == 0 and not outbox.settled and not outbox.settle("w", "gradient", 1)
    assert outbox.settle("w", "weight", 1) and outbox.wait_settled(0.0)
    assert not outbox.settle("w", "weight", 1)
