"""Connections are ended one by one and counted; each peer is named once, and a flood makes few lines."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest
from served_gate import LIMITS, was_cut

from rankd.gate.connection import Listener
from rankd.gate.cuts import LINES_AT_ONCE, LINES_PER_SECOND, MAX_NAMED, Cuts


def test_many_faults_make_few_lines(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = make()
    for _ in range(1200):
        with served.raw() as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert was_cut(peer)
    assert served.counters["num_cut_bad_greeting"] == 1200
    assert [record.message.split("times=")[1].split()[0] for record in caplog.records] == ["1", "10", "100", "1000"]


def test_each_peer_is_named_once_for_each_reason_and_no_disk_is_filled(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    counters: Counter[str] = Counter()
    cuts = Cuts(counters, lambda: now[0])
    listener = Listener("push", socket.socket(), "", "NULL", LIMITS)
    for _ in range(3):
        for host in ("192.0.2.1", "192.0.2.2"):
            for reason in ("slow", "too_long"):
                cuts.count(listener, host, f"{host}:7", reason, "detail")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4 and lines[0] == "cut off 192.0.2.1:7 at push: slow times=1 detail"
    for number in range(2000):
        cuts.count(listener, f"host {number}", "", "slow", "")
    assert len(caplog.records) <= LINES_AT_ONCE + 4, "and the thousandth time, as for one peer"
    now[0] = 2 / LINES_PER_SECOND
    for number in range(2000, 2010):
        cuts.count(listener, f"host {number}", "", "slow", "")
    assert len(caplog.records) <= LINES_AT_ONCE + 6
    assert counters["num_cut_slow"] == 2016 and len(cuts._named) <= MAX_NAMED
    listener.socket.close()


def test_cut_ends_one_of_two_connections_of_the_same_peer(make: Any) -> None:
    served = make()
    with served.greeted() as bad, served.greeted() as good:
        bad.sendall(b"\0\1b")
        connection, _ = served.take()
        served.gate.cut(connection, "not_allowed")
        assert was_cut(bad)
        good.sendall(b"\0\1g")
        other, frames = served.take()
        assert frames == [b"g"]
        assert other is not connection
    served.eventually(lambda: served.counters["num_cut_not_allowed"] == 1)


def test_the_connections_of_a_key_are_cut_together(make: Any) -> None:
    served = make()
    with served.greeted() as first, served.greeted() as second, served.greeted() as other:
        for peer, user_id in ((first, "ann"), (second, "ann"), (other, "bob")):
            peer.sendall(b"\0\1x")
            connection, _ = served.take()
            connection.user_id = user_id
        served.gate.cut_users({"ann"}, "revoked")
        assert was_cut(first) and was_cut(second)
        other.sendall(b"\0\1y")
        assert served.take()[1] == [b"y"]
