"""What a trainer reports, on its way: in order, again over a new connection, within bounds."""

from __future__ import annotations

import threading
from typing import Any

import msgpack
import pytest

from rankd_client import reports as module
from rankd_client.reports import MAX_UNDER_WAY, Report, Reports

BODY = {"effective_rank": 3.0, "spectral_norm": 1.0}


@pytest.fixture
def reports() -> Reports:
    return Reports(threading.Condition())


def put(reports: Reports, *steps: int, layer: str = "w", role: str = "weight", **more: Any) -> None:
    for step in steps:
        reports.put(layer, role, step, BODY | more)


def send(reports: Reports) -> list[tuple[str, int, bool]]:
    """All that may go now: layer, step, again."""
    sent = []
    while (report := reports.next()) is not None:
        message = report.message()
        sent.append((message.layer, message.step, message.again))
        reports.sent(report)
    return sent


def test_each_is_sent_once_in_order_and_kept_until_it_is_recorded(reports: Reports) -> None:
    put(reports, 1, 2)
    put(reports, 1, layer="v")
    assert reports.num_unsent == 3 and not reports.settled
    assert send(reports) == [("w", 1, False), ("w", 2, False), ("v", 1, False)]
    assert reports.num_unsent == 0 and send(reports) == []
    for name in (("w", "weight", 2), ("w", "weight", 1), ("v", "weight", 1)):
        assert not reports.settled and reports.settle(name)
    assert reports.settled and not reports.settle(("w", "weight", 1))


def test_the_message_has_what_was_put(reports: Reports) -> None:
    put(reports, 7, role="feature", note="ü")
    report = reports.next()
    assert report is not None
    message = report.message()
    assert (message.layer, message.role, message.step) == ("w", "feature", 7)
    assert message.body == {**BODY, "note": "ü"} and message.num_bytes == len(report.body)


def test_over_a_new_connection_all_that_is_not_recorded_goes_again_before_what_is_new(reports: Reports) -> None:
    put(reports, 1)
    send(reports)
    reports.settle(("w", "weight", 1))
    put(reports, 2, 3)
    send(reports)
    put(reports, 4)
    reports.rewind()
    assert send(reports) == [("w", 2, True), ("w", 3, True), ("w", 4, False)]


def test_a_return_that_may_not_be_known_goes_as_one_again_and_so_does_what_came_after(reports: Reports) -> None:
    put(reports, 5)
    send(reports)
    reports.settle(("w", "weight", 5))
    put(reports, 6, 3, 4)
    put(reports, 1, layer="v")  # the first of a layer that this process sends: who knows what the daemon has of it
    put(reports, 2, layer="v")
    send(reports)
    reports.rewind()
    expected = [("w", 6, True), ("w", 3, False), ("w", 4, False), ("v", 1, False), ("v", 2, False)]
    assert send(reports) == expected
    reports.settle(("w", "weight", 6))
    reports.settle(("w", "weight", 3))
    reports.rewind()
    assert send(reports)[0] == ("w", 4, True)  # the return is known


def test_no_more_are_on_the_way_than_a_daemon_holds(reports: Reports) -> None:
    put(reports, *range(MAX_UNDER_WAY + 2))
    assert len(send(reports)) == MAX_UNDER_WAY
    assert reports.received(("w", "weight", 0)) and not reports.received(("w", "weight", 0))
    assert not reports.received(("w", "weight", MAX_UNDER_WAY + 1)), "it is not under way"
    assert send(reports) == [("w", MAX_UNDER_WAY, False)]
    assert reports.settle(("w", "weight", 1))  # the answer that it was received got lost
    assert send(reports) == [("w", MAX_UNDER_WAY + 1, False)]
    reports.rewind()
    assert len(send(reports)) == MAX_UNDER_WAY


def test_memory_is_bounded_the_oldest_go_and_are_counted() -> None:
    size = Report("w", "weight", 0, msgpack.packb(BODY), 0, True).num_bytes
    dropped: list[int] = []
    reports = Reports(threading.Condition(), max_bytes=3 * size, on_dropped=lambda report: dropped.append(report.step))
    put(reports, 1, 2)
    assert send(reports) == [("w", 1, False), ("w", 2, False)]
    put(reports, 3, 4, 5)
    assert (
        reports.num_dropped == 2
        and dropped == [1, 2]
        and send(reports) == [("w", 3, False), ("w", 4, False), ("w", 5, False)]
    )
    reports.rewind()
    assert send(reports)[0] == ("w", 3, False), "the first of what is left is it that may be a return now"
    put(reports, *range(6, 60))
    assert reports.num_dropped == 56 and len(send(reports)) == 3


def test_giving_up_leaves_nothing_to_wait_for(reports: Reports) -> None:
    put(reports, 1, 2)
    send(reports)
    put(reports, 3)
    reports.give_up()
    assert reports.settled and reports.num_dropped == 3
    put(reports, 4)
    assert send(reports) == [("w", 4, False)]


def test_one_that_is_dropped_while_it_is_sent_is_not_awaited(reports: Reports) -> None:
    put(reports, 1)
    report = reports.next()
    assert report is not None
    reports.give_up()
    reports.sent(report)
    assert reports.settled


def test_a_step_counts_once_and_an_earlier_one_is_a_return(reports: Reports) -> None:
    taken = [reports.put("w", "weight", step, BODY) for step in (5, 5, 2, 2, 5, 6)]
    assert taken == [True, False, True, False, True, True]
    assert reports.put("w", "feature", 6, BODY) and reports.put("v", "weight", 6, BODY)
    assert reports.num_unsent == 6 and reports.num_dropped == 0


def test_a_step_counts_once_whatever_became_of_it(reports: Reports) -> None:
    put(reports, 1)
    reports.give_up()
    assert not reports.put("w", "weight", 1, BODY), "dropped, and told so"
    put(reports, 2)
    send(reports)
    reports.rewind()
    assert send(reports) == [("w", 2, False)], "what the daemon has of its layer nobody knows still"
    assert not reports.put("w", "weight", 2, BODY), "on its way"
    reports.settle(("w", "weight", 2))
    assert not reports.put("w", "weight", 2, BODY), "recorded"
    assert reports.settled and reports.num_dropped == 1


def test_a_step_that_a_run_came_back_to_waits_until_it_is_recorded_as_it_was_before(reports: Reports) -> None:
    """An answer names no more than layer, role and step: of two on the way it would be anybody's."""
    put(reports, 3, 2, 3)
    put(reports, 3, layer="v")
    assert send(reports) == [("w", 3, False), ("w", 2, False)]
    assert reports.settle(("w", "weight", 2)) and send(reports) == []
    reports.rewind()
    assert send(reports) == [("w", 3, False)]
    assert reports.settle(("w", "weight", 3))
    assert send(reports) == [("w", 3, False), ("v", 3, False)]
    assert reports.settle(("w", "weight", 3)) and reports.settle(("v", "weight", 3)) and reports.settled


def test_layers_without_end_are_forgotten(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 2)
    for layer in ("a", "b", "c"):
        put(reports, 1, layer=layer)
    put(reports, 2, layer="a")
    send(reports)
    for name in ("a", "b", "c"):
        reports.settle((name, "weight", 1))
    reports.rewind()
    assert send(reports) == [("a", 2, False)], "what is not known of it may be a return"
    taken = {layer: reports.put(layer, "weight", 1, BODY) for layer in ("c", "b")}
    assert taken == {"c": False, "b": True}, "of the last two their step is known"
