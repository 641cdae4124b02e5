"""Connections are ended one by one, counted, and told of ever more rarely."""

from __future__ import annotations

from typing import Any

import pytest
from served_gate import was_cut


def test_many_faults_make_few_lines(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = make()
    for _ in range(1200):
        with served.raw() as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert was_cut(peer)
    assert served.counters["num_cut_bad_greeting"] == 1200
    assert [record.message.split("times=")[1].split()[0] for record in caplog.records] == ["1", "10", "100", "1000"]


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
