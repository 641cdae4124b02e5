"""Connections inside, to real libzmq sockets: messages tell by which they came."""

from __future__ import annotations

import dataclasses
import socket
import struct
from typing import Any

from served_gate import LIMITS, SIGNATURE


def test_each_message_tells_its_connection(make: Any) -> None:
    served = make()
    seen = set()
    for _ in range(20):  # libzmq's descriptors are used again and again
        peers = [served.dealer() for _ in range(3)]
        for peer in peers:
            peer.send(b"x")
        connections = {served.take()[0] for _ in peers}
        assert len(connections) == 3 and None not in connections
        assert not connections & seen
        seen |= connections
        for peer in peers:
            peer.close()
        served.eventually(lambda: served.counters["num_connections_open"] == 0)


def test_connections_that_come_too_fast_wait_their_turn(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, connections_per_second=10.0, handshake_seconds=0.3))
    peers = [served.raw() for _ in range(120)]  # 100 at once, then 10 a second
    for peer in peers:
        peer.sendall(SIGNATURE)
    assert all(peer.recv(1) == b"\xff" for peer in peers)
    for peer in peers:
        peer.close()


def test_a_reset_peer_leaves_nothing_that_another_could_be_taken_for(make: Any) -> None:
    """Numbers of descriptors are used again: one that stays with the selector would keep the next one from being
    heard."""
    served = make(tcp=True)
    honest = []
    for _ in range(20):
        peers = [served.raw() for _ in range(5)]
        for peer in peers:
            peer.sendall(SIGNATURE)
            assert peer.recv(1) == b"\xff"
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        honest.append(served.greeted())
    served.eventually(lambda: served.counters["num_connections_open"] == len(honest))
    for peer in honest:
        peer.close()
    served.eventually(lambda: served.counters["num_connections_open"] == 0)
