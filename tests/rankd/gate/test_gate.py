"""The gate before real libzmq sockets: honest peers are served, whatever another one does."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections import Counter
from typing import Any

import pytest
import zmq
from served_gate import LIMITS, WAIT_SECONDS, was_cut

from rankd.gate import GateLimits


@pytest.mark.parametrize("tcp", [False, True], ids=["ipc", "tcp"])
def test_an_honest_peer_is_served_whole_both_ways(make: Any, tcp: bool) -> None:
    served = make(tcp=tcp)
    peer = served.dealer()
    payload = os.urandom(16 << 20)
    for number in range(6):
        peer.send_multipart([b"%d" % number, payload], copy=False)
    for number in range(6):
        identity, head, body = served.socket.recv_multipart(copy=False)
        connection = served.gate.connection(body)
        assert connection is not None
        served.gate.delivered(connection, 2)
        assert (head.bytes, body.bytes == payload) == (b"%d" % number, True)
        served.socket.send_multipart([identity.bytes, b"%d" % number, payload], copy=False)
    for number in range(6):
        assert peer.recv_multipart() == [b"%d" % number, payload]
    assert connection.name.startswith("127.0.0.1:" if tcp else f"uid {os.getuid()} pid {os.getpid()}")


def test_no_more_is_taken_than_the_window_and_all_of_it_comes(make: Any) -> None:
    limits = GateLimits(max_frame_bytes=1 << 20, max_frames=1, window_bytes=2 << 20, max_total_bytes=3 << 20)
    served = make(limits)
    message = b"\x02" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20)
    peers = [served.greeted() for _ in range(3)]
    threads = [threading.Thread(target=peer.sendall, args=[message * 10]) for peer in peers]
    for thread in threads:
        thread.start()
    for _ in range(30):
        frames = served.socket.recv_multipart(copy=False)
        connection = served.gate.connection(frames[-1])
        assert connection is not None
        assert connection.undelivered_bytes <= 2 << 20
        assert connection.listener.undelivered_bytes <= 3 << 20
        served.gate.delivered(connection, 1)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    for peer in peers:
        peer.close()
    served.eventually(lambda: served.counters["num_connections_open"] == 0)
    assert connection.listener.undelivered_bytes == 0


def test_what_a_peer_sent_before_it_left_is_delivered(make: Any) -> None:
    served = make()
    with served.greeted() as peer:
        peer.sendall(b"".join(b"\0\1" + bytes([number % 256]) for number in range(2000)))  # beyond all queues
    for number in range(2000):
        assert served.take()[1] == [bytes([number % 256])]
    served.eventually(lambda: served.counters["num_connections_open"] == 0)


def test_half_a_connection_still_hears(make: Any) -> None:
    served = make()
    with served.greeted() as peer:
        peer.sendall(b"\0\1x")
        identity, _ = served.socket.recv_multipart()
        served.socket.send_multipart([identity, b"answer"])
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(100) == b"\0\6answer"


def test_a_peer_that_does_not_read_holds_up_nobody(make: Any) -> None:
    served = make()
    with served.greeted() as deaf:
        deaf.sendall(b"\0\1x")
        identity, _ = served.socket.recv_multipart()
        for _ in range(50):
            served.socket.send_multipart([identity, bytes(1 << 20)], copy=False)
        honest = served.dealer()
        honest.send(b"y")
        identity, _ = served.socket.recv_multipart()
        served.socket.send_multipart([identity, b"z"])
        assert honest.recv() == b"z"


def test_honest_peers_that_send_and_leave_at_once_lose_nothing(make: Any) -> None:
    served = make(tcp=True)
    for number in range(200):
        peer = served.context.socket(zmq.DEALER)
        peer.connect(served.address)
        for part in range(3):
            peer.send_multipart([b"%d" % number, b"%d" % part, bytes(10_000)])
        peer.close(linger=WAIT_SECONDS * 1000)
    received = Counter(tuple(served.take()[1][:2]) for _ in range(600))
    assert len(received) == 600
    served.eventually(lambda: served.counters["num_connections_open"] == 0)


def test_what_will_never_be_read_does_not_stay(make: Any) -> None:
    """As with the beginning of a CURVE message whose sender is gone. What libzmq has whole is read later."""
    served = make(dataclasses.replace(LIMITS, leave_seconds=0.2))
    with served.greeted() as peer:
        peer.sendall(b"\0\1x")
    served.eventually(lambda: served.counters["num_connections_open"] == 0)
    assert served.counters["num_connections"] == 1
    with served.greeted() as other:
        assert served.take()[1] == [b"x"]
        other.sendall(b"\0\1y")
        assert served.take()[1] == [b"y"]


def test_a_fault_with_one_connection_costs_that_one(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = make()
    with served.greeted() as unlucky, served.greeted() as other:
        unlucky.sendall(b"\0\1x")
        connection, _ = served.take()

        def fail(*arguments: object) -> int:
            raise ZeroDivisionError

        monkeypatch.setattr(connection.framing, "feed", fail)
        unlucky.sendall(b"\0\1x")
        assert was_cut(unlucky)
        assert "ZeroDivisionError" in caplog.text
        assert served.counters["num_cut_fault"] == 1
        other.sendall(b"\0\1y")
        assert served.take()[1] == [b"y"]


def test_a_fault_of_the_loop_is_told(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = make()
    monkeypatch.setattr(served.gate, "_sweep", None)
    served.eventually(lambda: served.crashes)
    assert isinstance(served.crashes.pop(), TypeError)
