"""Bodies of large frames go through pipes: none of their bytes is lost, changed or held on to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_gate import GREETING_REST, LIMITS, SIGNATURE, Served, ready, was_cut

from rankd.gate import Connection, pipes
from rankd.gate.connection import SCRATCH_BYTES, Listener
from rankd.gate.pipes import MAX_PIPES, Pipe, Pipes

pytestmark = pytest.mark.skipif(not hasattr(os, "splice"), reason="there are pipes on Linux only")

BIG = random.Random(0).randbytes((3 << 20) + 100)
LARGE_BYTES = 3 << 20


def body(number: int) -> bytes:
    """Each another."""
    return BIG[number : number + LARGE_BYTES]


def sent(number: int) -> bytes:
    """A message of that one frame, as a peer sends it."""
    return b"\2" + LARGE_BYTES.to_bytes(8, "big") + body(number)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    yield pair
    for end in pair:
        end.close()


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_bytes_come_out_as_they_went_in(ends: tuple[socket.socket, socket.socket]) -> None:
    pipe, (left, right) = Pipe(), ends
    with pytest.raises(BlockingIOError):
        pipe.fill(right, 100)
    left.send(BIG[:10_000])
    assert pipe.fill(right, 7000) == pipe.num_bytes == 7000
    pipe.drain(right)
    assert pipe.num_bytes == 0
    assert left.recv(20_000) == BIG[:7000]
    assert right.recv(20_000) == BIG[7000:10_000]
    left.shutdown(socket.SHUT_WR)
    assert pipe.fill(right, 100) == 0
    pipe.close()


def test_what_the_target_does_not_take_stays(ends: tuple[socket.socket, socket.socket]) -> None:
    pipe, (left, right) = Pipe(), ends
    while True:
        try:
            right.send(bytes(10_000))
        except BlockingIOError:
            break
    left.send(BIG[:1000])
    assert pipe.fill(right, 1000) == 1000
    pipe.drain(right)
    assert pipe.num_bytes == 1000
    left.close()
    with pytest.raises(OSError, match=r"pipe|reset"):
        pipe.drain(right)
    pipe.close()


def test_pipes_are_few_and_are_used_again(ends: tuple[socket.socket, socket.socket]) -> None:
    left, right = ends
    before, made = num_files(), Pipes()
    taken = [pipe for _ in range(MAX_PIPES) if (pipe := made.take()) is not None]
    assert len(taken) == MAX_PIPES and made.take() is None
    made.give_back(taken[0])
    assert made.take() is taken[0]
    left.send(b"left over")
    taken[0].fill(right, 100)
    made.give_back(taken[0])
    assert num_files() == before + 2 * MAX_PIPES - 2, "one with bytes in it is nobody else's"
    assert made.take() not in (None, taken[0])
    made.close()
    for pipe in taken[1:]:
        made.give_back(pipe)


def test_large_frames_of_several_peers_arrive_as_they_were_sent(make: Any) -> None:
    for tcp in (True, False):
        served: Served = make(tcp=tcp)
        dealers = [served.dealer() for _ in range(3)]
        for number in range(4):
            for part, dealer in enumerate(dealers):
                dealer.send_multipart([b"%d" % part, body(number), b"end"])
            for _ in dealers:
                assert served.take()[1][1:] == [body(number), b"end"]
        assert not tcp or served.gate._pipes._free


class Halfway:
    """A connection whose peer has sent `data` after its handshake, and whose libzmq has read nothing of it yet."""

    def __init__(self, data: bytes) -> None:
        self.pipes = Pipes()
        self.peer, outer = socket.socketpair()
        self.libzmq, inner = socket.socketpair()
        for end in (self.peer, inner):  # as much as is read at once
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for end in (outer, inner, self.peer):
            end.setblocking(False)
        listener = Listener("push", socket.socket(), "", "NULL", LIMITS)
        listener.socket.close()
        self.connection = Connection(listener, outer, "uid 0", "", threading.Lock(), self.pipes)
        self.connection.inner = inner
        self.before = SIGNATURE + GREETING_REST + ready()
        self.unsent = self.before + data
        self.sent = self.read = b""

    def turn(self) -> None:
        """What the peer can send is sent and, as far as libzmq's end takes it, passed on."""
        with contextlib.suppress(BlockingIOError):
            self.unsent = self.unsent[self.peer.send(self.unsent) :]
        self.connection.flush_inner()
        self.connection.read_outer(memoryview(bytearray(SCRATCH_BYTES)))

    def take(self, num_bytes: int) -> bytes:
        """As libzmq."""
        while len(self.read) < num_bytes:
            self.turn()
            self.read += self.libzmq.recv(100_000)
        return self.read

    def close(self) -> None:
        self.connection.close()
        self.pipes.close()
        self.peer.close()
        self.libzmq.close()


@pytest.fixture
def halfway() -> Iterator[Halfway]:
    made = Halfway(sent(0) + sent(1))
    while made.connection._pipe is None:
        made.turn()
    yield made
    made.close()


def test_what_waits_in_a_pipe_comes_first_and_whole(halfway: Halfway) -> None:
    assert not halfway.connection.is_readable
    whole = halfway.before + sent(0) + sent(1)
    assert halfway.take(len(whole)) == whole
    assert not halfway.connection.waits_inside and halfway.connection.is_readable
    assert halfway.pipes._num_made == len(halfway.pipes._free) == 1
    assert [end[1] for end in halfway.connection.framing.ends] == [len(sent(0)), len(sent(1))]


def test_what_waits_in_a_pipe_outlives_the_peer(halfway: Halfway) -> None:
    halfway.connection.leave_outer()
    halfway.connection.shut_inner(anyway=True)
    passed = halfway.connection.framing.position
    while halfway.connection.waits_inside:
        halfway.read += halfway.libzmq.recv(100_000)
        halfway.connection.flush_inner()
    halfway.connection.shut_inner(anyway=True)
    while data := halfway.libzmq.recv(100_000):
        halfway.read += data
    assert halfway.read == (halfway.before + sent(0))[:passed]


@pytest.mark.parametrize("num_turns", range(12))
def test_what_was_cut_off_in_a_pipe_is_not_waited_for(halfway: Halfway, num_turns: int) -> None:
    connection = halfway.connection
    for _ in range(num_turns):
        halfway.read += halfway.libzmq.recv(600_000)
        halfway.turn()
    connection.cut()
    assert not connection.waits_inside
    is_awaited = bool(connection.framing.ends)
    connection.close()
    while data := halfway.libzmq.recv(100_000):
        halfway.read += data
    assert is_awaited == (sent(0) in halfway.read)
    assert not any(pipe.num_bytes for pipe in halfway.pipes._free)


def test_a_connection_that_libzmq_ended_gives_its_pipe_back(halfway: Halfway) -> None:
    halfway.libzmq.close()
    halfway.connection.flush_inner()
    assert halfway.connection.has_ended and not halfway.connection.waits_inside
    assert halfway.pipes._num_made == 0, "what was in it is nobody else's"


def test_who_sends_little_at_a_time_has_it_copied() -> None:
    slow = Halfway(sent(0)[: 1 << 20])
    slow.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    assert slow.take(1 << 20) == (slow.before + sent(0))[: len(slow.read)]
    assert slow.pipes._num_made == 0
    slow.close()


def test_a_large_frame_that_is_not_whole_is_never_delivered(make: Any) -> None:
    served: Served = make(dataclasses.replace(LIMITS, slow_seconds=0.5, slow_bytes_per_second=1e9))
    with served.greeted() as cut_off, served.greeted() as other:
        cut_off.sendall(sent(0) + sent(1)[:-1])
        assert was_cut(cut_off)
        other.sendall(sent(2))
        assert sorted(served.take()[1] for _ in range(2)) == sorted([[body(0)], [body(2)]])
    served.eventually(lambda: served.counters["num_connections_open"] == 0)
    assert not served.socket.poll(0)
    assert served.counters["num_cut_slow"] == 1


def test_without_pipes_bytes_are_copied(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MAX_PIPES", 0)
    served: Served = make(tcp=True)
    served.dealer().send_multipart([b"head", body(1)])
    assert served.take()[1] == [b"head", body(1)]
    assert not served.gate._pipes._free


def test_who_ends_in_the_middle_of_a_frame_leaves_no_descriptor(make: Any) -> None:
    served: Served = make(tcp=True)
    for _ in range(3):
        with served.greeted() as peer:
            peer.sendall(sent(0)[:-1])
    served.eventually(lambda: served.counters["num_connections"] == 3 and not served.counters["num_connections_open"])
    assert served.gate._pipes._num_made <= 3
