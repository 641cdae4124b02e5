"""The gate before real libzmq sockets: raw peers break rules, honest ones are served."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rankd.gate import ALERTS_LIMITS, Connection, Gate, GateLimits, push_limits

WAIT_SECONDS = 30
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING_REST = b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(kind: bytes = b"DEALER", more: bytes = b"") -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind + more
    return b"\x04" + bytes([len(body)]) + body


LIMITS = dataclasses.replace(push_limits(16 << 20, 64 << 20), handshake_seconds=1.0)


class Served:
    """A gate before one libzmq socket, whose messages are taken by hand."""

    def __init__(self, directory: Path, context: zmq.Context[Any], limits: GateLimits, kind: int, tcp: bool) -> None:
        self.context = context
        self.dealers: list[zmq.Socket[Any]] = []
        self.counters: Counter[str] = Counter()
        self.faults: list[tuple[str, str | None]] = []
        self.crashes: list[BaseException] = []
        self.gate = Gate(directory, self.counters, lambda *fault: self.faults.append(fault), self.crashes.append)
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 8)
        self.socket.setsockopt(zmq.RCVTIMEO, WAIT_SECONDS * 1000)
        if kind == zmq.XPUB:
            self.socket.setsockopt(zmq.XPUB_MANUAL, 1)
        inner = f"{directory}/inner"
        self.socket.bind(f"ipc://{inner}")
        bound = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        bound.bind(("127.0.0.1", 0) if tcp else f"{directory}/outer")
        self.where = bound.getsockname()
        self.address = f"tcp://127.0.0.1:{self.where[1]}" if tcp else f"ipc://{self.where}"
        self.gate.listen("push", bound, inner, "NULL", limits)
        self.gate.start()

    def take(self) -> tuple[Connection | None, list[bytes]]:
        """The next message, and whose it is."""
        frames = self.socket.recv_multipart(copy=False)
        if self.socket.type == zmq.ROUTER:
            del frames[0]
        connection = self.gate.connection(frames[-1])
        if connection is not None:
            self.gate.delivered(connection, len(frames))
        return connection, [frame.bytes for frame in frames]

    def raw(self) -> socket.socket:
        peer = socket.socket(socket.AF_INET if isinstance(self.where, tuple) else socket.AF_UNIX)
        peer.settimeout(WAIT_SECONDS)
        peer.connect(self.where)
        return peer

    def greeted(self) -> socket.socket:
        """A raw peer whose handshake is through."""
        peer = self.raw()
        for piece in (SIGNATURE, GREETING_REST, ready(b"DEALER" if self.socket.type == zmq.ROUTER else b"SUB")):
            peer.sendall(piece)
        answer = b""
        while b"Socket-Type" not in answer:
            answer += peer.recv(1000)
        return peer

    def dealer(self) -> zmq.Socket[Any]:
        """An honest peer."""
        self.dealers.append(self.context.socket(zmq.DEALER))
        self.dealers[-1].setsockopt(zmq.RCVTIMEO, WAIT_SECONDS * 1000)
        self.dealers[-1].connect(self.address)
        return self.dealers[-1]

    def close(self) -> None:
        for dealer in self.dealers:
            dealer.close(linger=0)
        self.gate.stop_accepting()
        self.socket.close(linger=0)
        self.gate.close(0.5)
        assert self.crashes == []


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def make(socket_dir: Path, context: zmq.Context[Any]) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(limits: GateLimits = LIMITS, kind: int = zmq.ROUTER, tcp: bool = False) -> Served:
        directory = socket_dir / str(len(started))
        directory.mkdir()
        started.append(Served(directory, context, limits, kind, tcp))
        return started[-1]

    yield start
    for served in started:
        served.close()


def was_cut(peer: socket.socket) -> bool:
    """Whether the other side ends the connection."""
    try:
        while peer.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def eventually(holds: Callable[[], object]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


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
        eventually(lambda: served.counters["num_connections_open"] == 0)


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
    served = make()
    for start in (b"", b"\xff", SIGNATURE, SIGNATURE + GREETING_REST):
        with served.raw() as peer:
            peer.sendall(start)
            assert was_cut(peer)
    assert served.counters["num_cut_slow"] == 4


def test_who_stops_in_the_middle_is_cut_off_and_who_is_made_to_wait_is_not(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, slow_seconds=0.5, slow_bytes_per_second=1e9))
    waiting = served.dealer()
    for _ in range(4):
        waiting.send(bytes(16 << 20))  # two windows: the rest waits outside
    for start in (b"\0", b"\0\5x", b"\1\1x"):
        with served.greeted() as peer:
            peer.sendall(start)
            assert was_cut(peer)
    for _ in range(4):
        assert served.take()[1] == [bytes(16 << 20)]
    assert served.counters["num_cut_slow"] == 3


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
    eventually(lambda: served.counters["num_connections_open"] == 0)
    assert connection.listener.undelivered_bytes == 0


def test_what_a_peer_sent_before_it_left_is_delivered(make: Any) -> None:
    served = make()
    with served.greeted() as peer:
        peer.sendall(b"".join(b"\0\1" + bytes([number % 256]) for number in range(2000)))  # beyond all queues
    for number in range(2000):
        assert served.take()[1] == [bytes([number % 256])]
    eventually(lambda: served.counters["num_connections_open"] == 0)


def test_of_a_peer_that_nobody_heard_yet_no_more_is_taken_than_libzmq_queues(make: Any) -> None:
    """Beyond that libzmq stops reading the connection, and does not see its end."""
    served = make(dataclasses.replace(LIMITS, leave_seconds=0.2, stuck_seconds=1.0))
    with served.greeted() as peer:
        peer.sendall(b"\0\1x" * 50)
    eventually(lambda: served.counters["num_connections"] == 1 and served.counters["num_connections_open"] == 0)
    received = 0
    while served.socket.poll(200):
        assert served.take()[1] == [b"x"]
        received += 1
    assert 0 < received <= 6


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
    eventually(lambda: served.counters["num_connections_open"] == 0)
    with served.greeted() as third:
        third.sendall(b"\4\x2a\x09SUBSCRIBE" + bytes(32))
        while served.take()[1][0][:1] != b"\1":  # before it the end of the first one's
            pass
    assert served.counters["num_cut_too_many_subscriptions"] == 1


def test_connections_that_come_too_fast_wait_their_turn(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, connections_per_second=10.0, handshake_seconds=0.3))
    peers = [served.raw() for _ in range(120)]  # 100 at once, then 10 a second
    for peer in peers:
        peer.sendall(SIGNATURE)
    assert all(peer.recv(1) == b"\xff" for peer in peers)
    for peer in peers:
        peer.close()


def test_connections_are_limited_by_peer(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections_per_peer=3))
    peers = [served.greeted() for _ in range(3)]
    for _ in range(5):
        with served.raw() as one_more:
            assert was_cut(one_more)
    assert served.counters["num_cut_too_many_connections"] == 5
    assert len([record for record in caplog.records if "too_many_connections" in record.message]) == 1
    assert f"uid {os.getuid()} pid {os.getpid()} at push" in caplog.text
    peers.pop().close()
    eventually(lambda: served.counters["num_connections_open"] == 2)
    peers.append(served.greeted())
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
    eventually(lambda: served.counters["num_connections_open"] == len(honest))
    for peer in honest:
        peer.close()
    eventually(lambda: served.counters["num_connections_open"] == 0)


def test_who_has_left_holds_no_place_and_loses_nothing(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections_per_peer=2, max_connections=4))
    for number in range(4):
        with served.greeted() as peer:
            peer.sendall(b"\0\1%d" % number)
    assert served.counters["num_connections_open"] >= 3, "nobody reads yet"
    with served.greeted(), served.greeted():
        assert sorted(served.take()[1][0] for _ in range(4)) == [b"0", b"1", b"2", b"3"]
    assert served.counters["num_cut_too_many_connections"] == 0


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
    eventually(lambda: served.counters["num_connections_open"] == 0)


def test_what_will_never_be_read_does_not_stay(make: Any) -> None:
    """As with the beginning of a CURVE message whose sender is gone. What libzmq has whole is read later."""
    served = make(dataclasses.replace(LIMITS, leave_seconds=0.2))
    with served.greeted() as peer:
        peer.sendall(b"\0\1x")
    eventually(lambda: served.counters["num_connections"] == 1 and served.counters["num_connections_open"] == 0)
    with served.greeted() as other:
        assert served.take()[1] == [b"x"]
        other.sendall(b"\0\1y")
        assert served.take()[1] == [b"y"]


def test_who_did_not_finish_the_handshake_makes_way(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections_per_peer=3, handshake_seconds=600.0))
    with served.greeted() as old, served.raw() as oldest, served.raw() as younger:
        eventually(lambda: served.counters["num_connections_open"] == 3)
        with served.greeted() as honest:
            assert was_cut(oldest)
            honest.sendall(b"\0\1h")
            assert served.take()[1] == [b"h"]
            with served.greeted(), served.raw() as too_many:
                assert was_cut(younger)
                assert was_cut(too_many)
        old.sendall(b"\0\1o")
        assert served.take()[1] == [b"o"]
    assert served.counters["num_cut_too_many_connections"] == 3


def test_a_crowd_of_strangers_makes_way_not_the_one_beside_it(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections=3, handshake_seconds=600.0), tcp=True)

    def from_host(host: str) -> socket.socket:
        return socket.create_connection(served.where, WAIT_SECONDS, source_address=(host, 0))

    with from_host("127.0.0.2") as slow:
        eventually(lambda: served.counters["num_connections_open"] == 1)
        with from_host("127.0.0.3") as first, from_host("127.0.0.3") as second, served.greeted():
            assert was_cut(first)
            slow.sendall(SIGNATURE)
            second.sendall(SIGNATURE)
            assert slow.recv(1) == second.recv(1) == b"\xff"


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
    eventually(lambda: served.counters["num_cut_not_allowed"] == 1)


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
    eventually(lambda: served.crashes)
    assert isinstance(served.crashes.pop(), TypeError)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(make: Any) -> None:
    served = make()
    os.chmod(served.where, 0o777)  # noqa: PTH101
    for part in (Path(served.where).parent, Path(served.where).parent.parent):
        part.chmod(0o755)
    script = (
        "import os, socket, sys; os.setuid(12345); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "print(s.recv(1))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, served.where], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "b''\n", done.stderr
    assert served.counters["num_cut_other_user"] == 1


OUT_OF_FILES = """
import os, resource, socket, sys, tempfile, time, zmq
from collections import Counter
from pathlib import Path
from rankd.gate import Gate, push_limits

resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
faults = []
directory = Path(sys.argv[1])
context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.setsockopt(zmq.RCVTIMEO, 30000)
router.bind(f"ipc://{directory}/inner")
outer = socket.socket(socket.AF_UNIX)
outer.bind(f"{directory}/outer")
gate = Gate(directory, Counter(), lambda *fault: faults.append(fault), lambda error: os._exit(3))
gate.listen("push", outer, f"{directory}/inner", "NULL", push_limits(16 << 20, 1 << 30))
gate.start()
print("ready", flush=True)
while not faults:
    time.sleep(0.01)
print(faults[0], flush=True)
print(router.recv_multipart()[1], flush=True)
while len(faults) < 2:
    time.sleep(0.01)
print(faults[1], flush=True)
print(time.process_time() < 10)
os._exit(0)
"""


def test_without_descriptors_it_waits_and_goes_on(socket_dir: Path, context: zmq.Context[Any]) -> None:
    """libzmq would abort the process."""
    command = [sys.executable, "-c", OUT_OF_FILES, str(socket_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        peers = []
        for _ in range(100):
            peers.append(socket.socket(socket.AF_UNIX))
            peers[-1].connect(f"{socket_dir}/outer")
            peers[-1].sendall(SIGNATURE)
        assert "'open_files', 'the limit on open files is reached" in process.stdout.readline()
        for peer in peers:
            peer.close()
        after = context.socket(zmq.DEALER)
        after.connect(f"ipc://{socket_dir}/outer")
        after.send(b"after")
        assert process.stdout.readline() == "b'after'\n"
        assert process.stdout.readline() == "('open_files', None)\n"
        assert process.stdout.readline() == "True\n"
        after.close(linger=0)
    assert process.returncode == 0
