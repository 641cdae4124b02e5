"""Connections inside, to real libzmq sockets: messages tell by which they came."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import zmq
from served_gate import LIMITS, SIGNATURE

from rankd.gate.connection import Connection, Listener
from rankd.gate.inside import Inside
from rankd.gate.pipes import Pipes


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


def test_a_descriptor_that_libzmq_closed_by_itself_comes_to_name_another_connection(socket_dir: Path) -> None:
    """As after a bad CURVE box of a peer that reads nothing, so that the gate does not see the end: the next one's
    messages were taken for the first one's."""

    class Frame(zmq.Frame):
        def get(self, option: int | str) -> str:
            assert option == "__fd"
            return str(end.fileno())

    inside = Inside(socket_dir)
    listener = Listener("push", socket.socket(socket.AF_UNIX), f"{socket_dir}/inner", "NULL", LIMITS)
    listener.socket.bind(listener.inner_path)
    listener.socket.listen()
    end, connections = socket.socket(socket.AF_UNIX), []
    for name in ("a", "b"):
        connections.append(
            Connection(listener, socket.socket(socket.AF_UNIX), "uid 0", name, threading.Lock(), Pipes())
        )
        assert inside.connect(connections[-1])
        accepted, _ = listener.socket.accept()
        os.dup2(accepted.fileno(), end.fileno())
        accepted.close()
        assert inside.connection(Frame(b"x")) is connections[-1]
    inside.forget(connections[1])
    assert inside.connection(Frame(b"x")) is None
    for connection in connections:
        connection.close()
    assert os.fstat(end.fileno()), "it is libzmq's to close"
    for left in (end, listener.socket):
        left.close()


def test_connections_that_come_too_fast_wait_their_turn(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, connections_per_second=10.0, handshake_seconds=1.0))
    peers = [served.raw() for _ in range(120)]  # 100 at once, then 10 a second
    for peer in peers:
        peer.sendall(SIGNATURE)
    assert all(peer.recv(1) == b"\xff" for peer in peers)
    for peer in peers:
        peer.close()


def test_however_many_one_address_sends_another_is_let_in_next(make: Any) -> None:
    """Half-open connections without end kept newcomers waiting for 6 to 20 s."""
    served = make(dataclasses.replace(LIMITS, connections_per_second=10.0), tcp=True)
    flood = []
    for _ in range(250):  # 100 at once, and 15 s of others who wait
        peer = socket.socket()
        peer.bind(("127.0.0.2", 0))
        peer.connect(served.where)
        peer.sendall(SIGNATURE)
        flood.append(peer)
    served.eventually(lambda: served.counters["num_connections"] == 250)
    with served.raw() as newcomer:
        newcomer.sendall(SIGNATURE)
        newcomer.settimeout(30)
        assert newcomer.recv(1) == b"\xff"
        still_waiting = 0
        for peer in flood:
            peer.setblocking(False)
            try:
                peer.recv(1)
            except BlockingIOError:
                still_waiting += 1
        assert still_waiting > 50, "who came before it waits still"
    for peer in flood:
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
