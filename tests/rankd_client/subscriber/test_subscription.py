"""Subscriptions over real sockets, against a small publisher."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from publisher import OTHER, STREAM, TIMEOUT, Publisher, follow, joined, seqs

from rankd_client.subscriber import Gap, Item, subscribe


def test_alerts_arrive_as_items(publisher: Publisher) -> None:
    with follow(publisher) as subscription:
        publisher.publish(message="fell")
        alert = next(subscription)
    assert isinstance(alert, Item) and (alert.stream, alert.run, alert["message"]) == ("alert", "r", "fell")
    assert subscription.stream_id == STREAM and subscription.gaps == [] and subscription.num_malformed == 0
    assert subscription.dropped == {} or subscription.dropped == {"dropped_events": 0}


def test_by_url_over_ipc(publishers: Callable[..., Publisher], tmp_path: Path) -> None:
    publisher = publishers(f"ipc://{tmp_path}/alerts.sock", f"ipc://{tmp_path}/query.sock")
    with subscribe(f"ipc://{tmp_path}", timeout=TIMEOUT) as subscription:
        publisher.publish()
        assert next(subscription).seq == 1


def test_late_joiner_gets_what_fires_then_what_comes(publisher: Publisher) -> None:
    publisher.publish()
    publisher.publish(state="resolved")
    with follow(publisher) as subscription:
        assert next(subscription).seq == 1
        publisher.publish()
        assert next(subscription).seq == 3


def test_measurements_runs_and_layers_are_filtered(publisher: Publisher) -> None:
    with joined(publisher, run="r", layers=("b*",)) as subscription:
        publisher.publish(kind="measurement", run="rr", layer="b")
        publisher.publish(kind="measurement", layer="a")
        publisher.publish(kind="measurement", layer="b.0")
        publisher.publish(kind="measurement", layer="b.1")
        items = [next(subscription), next(subscription)]
    assert [(item.stream, item.run, item.layer) for item in items] == [
        ("measurement", "r", "b.0"),
        ("measurement", "r", "b.1"),
    ]


def test_lost_events_are_fetched_in_order(publisher: Publisher) -> None:
    publisher.publish()
    with follow(publisher) as subscription:
        assert next(subscription).seq == 1
        publisher.publish(lost=True)
        publisher.publish(lost=True)
        publisher.publish()
        assert seqs(subscription, 3) == [2, 3, 4]
        publisher.publish(lost=True)
        assert next(subscription).seq == 5


def test_events_that_are_gone_are_a_gap_and_one_log_line(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rankd_client"), joined(publisher) as subscription:
        for _ in range(3):
            publisher.publish(kind="measurement", lost=True)
        publisher.call(publisher.forget)
        publisher.publish(kind="measurement")
        assert next(subscription).seq == 4
    assert subscription.gaps == [Gap(STREAM, "measurement", "r", 1, 3)]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"missed 3 events that the daemon at {publisher.alerts} no longer has")


def test_time_without_an_item_ends_it_though_heartbeats_come(publisher: Publisher) -> None:
    publisher.publish()
    subscription = follow(publisher, timeout=2.0)
    assert [item.seq for item in subscription] == [1]
    assert subscription.closed and list(subscription) == []


def test_time_out_without_a_daemon(tmp_path: Path) -> None:
    assert list(subscribe(f"ipc://{tmp_path}", timeout=0.05)) == []
    assert list(subscribe(f"ipc://{tmp_path}", timeout=0)) == []


def test_waits_for_a_daemon_that_is_not_there_yet(publishers: Callable[..., Publisher], tmp_path: Path) -> None:
    alerts, query = f"ipc://{tmp_path}/alerts.sock", f"ipc://{tmp_path}/query.sock"
    with subscribe(alerts=alerts, query=query, timeout=TIMEOUT) as subscription:
        publishers(alerts, query).publish()
        assert next(subscription).seq == 1


def test_absent_daemon_is_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = iter(float(second) for second in range(10_000))
    with subscribe(f"ipc://{tmp_path}") as subscription, caplog.at_level(logging.WARNING, "rankd_client"):
        subscription._sockets._clock = lambda: next(now)
        subscription._sockets._ticked_at = -1.0
        for _ in range(20):
            subscription._sockets.handle([])
    assert [record.getMessage() for record in caplog.records] == [
        f"no daemon is heard at ipc://{tmp_path}/alerts.sock; waiting for it"
    ]


@pytest.mark.parametrize("stream_id", [STREAM, OTHER])
def test_goes_on_when_the_daemon_restarts(publishers: Callable[..., Publisher], stream_id: str) -> None:
    """With its history (the numbers go on) and without (a new stream)."""
    old = publishers()
    old.publish()
    with follow(old) as subscription:
        assert next(subscription).seq == 1
        old.close()
        kept = old.events if stream_id == STREAM else []
        new = publishers(old.alerts, old.query, stream_id=stream_id, events=kept)
        new.publish()
        new.publish()
        assert seqs(subscription, 2) == ([2, 3] if stream_id == STREAM else [1, 2])
        assert subscription.stream_id == stream_id and subscription.gaps == []


def test_stuck_subscriber_holds_up_nobody_and_misses_nothing(publishers: Callable[..., Publisher]) -> None:
    publisher = publishers(hwm=10)

    def flood() -> None:
        for _ in range(2000):
            publisher._publish("r", "measurement", False, {"filler": "x" * 5000})

    with joined(publisher) as stuck, follow(publisher) as lively:
        assert next(lively).seq == 1
        publisher.call(flood)
        publisher.publish()
        assert next(lively).seq == 2  # while the other one has not been read
        items = list(itertools.islice(stuck, 2001))
    assert [item.seq for item in items if item.stream == "measurement"] == list(range(1, 2001))
    assert stuck.gaps == []


def test_garbage_is_counted_and_followed_past(publisher: Publisher) -> None:
    publisher.publish()
    with follow(publisher) as subscription:
        assert next(subscription).seq == 1
        publisher.send(b"alert\0r\0")
        publisher.send(b"alert\0r\0", b"short", b"\x80")
        publisher.send(b"alert\0r\0", bytes(16), b"\xc1")
        publisher.send(b"alert\0r\0x", bytes(16), b"\x80", b"")
        publisher.publish()
        assert next(subscription).seq == 2
        assert subscription.num_malformed == 4


def test_vanished_hosts_are_noticed_by_tcp_and_not_by_heartbeats_that_abort_the_process(publisher: Publisher) -> None:
    with joined(publisher) as items:
        for socket in (items._sockets.connections.events, items._sockets.connections.queries):
            assert socket.get(zmq.HEARTBEAT_IVL) == 0 and socket.get(zmq.TCP_KEEPALIVE) == 1


def test_abandoned_subscription_closes_its_sockets(publisher: Publisher) -> None:
    subscription = follow(publisher)
    context = subscription._sockets.context
    del subscription
    gc.collect()
    assert context.closed


def test_close_ends_the_iteration_and_may_be_repeated(publisher: Publisher) -> None:
    subscription = follow(publisher)
    subscription.close()
    subscription.close()
    assert list(subscription) == []
