"""Raw peers that break the rules of ZMTP, of sizes and of time: each is cut off, and no other."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import zmq
from served_gate import GREETING_REST, LIMITS, SIGNATURE, WAIT_SECONDS, ready, was_cut

from rankd.gate import ALERTS_LIMITS


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "bad_greeting"),
        (SIGNATURE + b"\x03\x01" + b"PLAIN".ljust(20, b"\0") + bytes(32), "wrong_mechanism"),
    ],
)
def test_who_is_no_peer_of_ours_is_cut_off(make: Any, sent: bytes, reason: str) -> None:
    served = make()
    with served.raw() as peer:
        peer.sendall(sent)
        assert was_cut(peer)
    assert served.counters[f"num_cut_{reason}"] == 1
    served.dealer().send(b"x")
    assert served.take()[1] == [b"x"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x02" + (1 << 30).to_bytes(8, "big") + b"x" * 1000, "too_long"),
        (b"\1\1x" * 5, "too_many_frames"),
        (b"\4\7\4PING\0\0", "bad_command"),
    ],
)
def test_a_broken_rule_ends_the_connection_and_no_other(make: Any, sent: bytes, reason: str) -> None:
    served = make()
    honest = served.dealer()
    honest.send(b"before")
    assert served.take()[1] == [b"before"]
    with served.greeted() as peer:
        peer.sendall(b"\0\4good" + sent)
        assert was_cut(peer)
    assert served.take()[1] == [b"good"], "what came whole before it counts"
    assert served.counters[f"num_cut_{reason}"] == 1
    honest.send(b"after")
    assert served.take()[1] == [b"after"]


def test_a_routing_id_of_the_peers_choice_is_refused(make: Any) -> None:
    served = make()
    with served.raw() as peer:
        peer.sendall(SIGNATURE + GREETING_REST)
        peer.sendall(ready(more=b"\x08Identity\0\0\0\x05\0\0\0\0\1"))
        assert was_cut(peer)
    assert served.counters["num_cut_bad_handshake"] == 1


def test_who_does_not_finish_the_handshake_is_cut_off(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, handshake_seconds=0.2))
    for start in (b"", b"\xff", SIGNATURE, SIGNATURE + GREETING_REST):
        with served.raw() as peer:
            peer.sendall(start)
            assert was_cut(peer)
    assert served.counters["num_cut_slow"] == 4


def test_who_stops_in_the_middle_is_cut_off_and_who_is_made_to_wait_is_not(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, slow_seconds=0.5, slow_bytes_per_second=1e6))
    waiting = served.dealer()
    for _ in range(4):
        waiting.send(bytes(16 << 20))  # two windows: the rest waits outside; 16 s for each
    for start in (b"\0", b"\0\5x", b"\1\1x"):
        with served.greeted() as peer:
            peer.sendall(start)
            assert was_cut(peer)
    for _ in range(4):
        assert served.take()[1] == [bytes(16 << 20)]
    assert served.counters["num_cut_slow"] == 3


def test_of_a_peer_that_nobody_heard_yet_no_more_is_taken_than_libzmq_queues(make: Any) -> None:
    """Beyond that libzmq stops reading the connection, and does not see its end."""
    served = make(dataclasses.replace(LIMITS, leave_seconds=0.2, stuck_seconds=1.0))
    with served.greeted() as peer:
        peer.sendall(b"\0\1x" * 50)
    served.eventually(lambda: served.counters["num_connections_open"] == 0)
    assert served.counters["num_connections"] == 1
    received = 0
    while served.socket.poll(200):
        assert served.take()[1] == [b"x"]
        received += 1
    assert 0 < received <= 6


def test_a_flood_of_subscriptions_is_cut_off(make: Any, context: zmq.Context[Any]) -> None:
    served = make(ALERTS_LIMITS, zmq.XPUB)
    with served.greeted() as flooder:
        taker = threading.Thread(target=lambda: [served.take() for _ in range(512)])  # 8 KiB of them
        taker.start()
        try:
            for number in range(3000):
                flooder.sendall(b"\4\x0e\x09SUBSCRIBE" + number.to_bytes(4, "big"))
        except OSError:
            pass
        taker.join(WAIT_SECONDS)
        assert was_cut(flooder)
    assert served.counters["num_cut_too_many_subscriptions"] == 1
    subscriber = context.socket(zmq.SUB)
    subscriber.connect(served.address)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"t")
    while (taken := served.take())[1] != [b"\1t"]:
        pass
    assert taken[0] is not None and taken[0].is_readable
    subscriber.close()


def test_subscribers_together_are_bounded(make: Any) -> None:
    """libzmq walks over all topics whenever one of them leaves."""
    served = make(dataclasses.replace(ALERTS_LIMITS, max_all_subscription_bytes=64), zmq.XPUB)
    with served.greeted() as first:
        first.sendall(b"\4\x2a\x09SUBSCRIBE" + bytes(32))
        assert len(served.take()[1][0]) == 33
        with served.greeted() as second:
            second.sendall(b"\4\x2a\x09SUBSCRIBE" + bytes(32))
            assert was_cut(second)
    served.eventually(lambda: served.counters["num_connections_open"] == 0)
    with served.greeted() as third:
        third.sendall(b"\4\x2a\x09SUBSCRIBE" + bytes(32))
        while served.take()[1][0][:1] != b"\1":  # before it the end of the first one's
            pass
    assert served.counters["num_cut_too_many_subscriptions"] == 1
