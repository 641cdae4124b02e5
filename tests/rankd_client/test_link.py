"""The link against a real ROUTER that speaks the protocol, well or badly."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rankd_client.arena import Arena, Memory
from rankd_client.link import Link, dealer, flow, loop
from rankd_client.outbox import Outbox
from rankd_client.wire import (
    MIN_CHUNK_BYTES,
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Hello,
    Message,
    Plan,
    Refusal,
    Welcome,
    decode,
    encode,
)

MIB = 1 << 20
PATIENCE_SECONDS = 10.0


class Router:
    """A daemon's push socket, worked by hand."""

    def __init__(self, address: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(address)
        self.peer = b""

    def receive(self, *, beats: bool = False) -> Message:
        """The next message (heartbeats left out unless `beats`); fails the test if none comes."""
        while True:
            assert self.socket.poll(1000 * PATIENCE_SECONDS), "nothing came"
            self.peer, *frames = self.socket.recv_multipart()
            message = decode(frames)
            if beats or not isinstance(message, Heartbeat):
                return message

    def chunk(self) -> Chunk:
        message = self.receive()
        assert isinstance(message, Chunk)
        return message

    def silent(self, seconds: float = 0.2) -> bool:
        return not self.socket.poll(1000 * seconds)

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.socket.send_multipart([self.peer, *encode(message)])

    def send_raw(self, *frames: bytes) -> None:
        self.socket.send_multipart([self.peer, *frames])

    def welcome(self, credit_bytes: int = 64 * MIB, **fields: Any) -> Hello:
        """Answer the hello that is due."""
        hello = self.receive()
        assert isinstance(hello, Hello)
        values = {"chunk_bytes": MIN_CHUNK_BYTES, "heartbeat_seconds": 60.0, **fields}
        self.send(Welcome("00" * 8, credit_bytes, **values))
        return hello

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class Setup:
    """An outbox with a link to an address, and what the link told."""

    def __init__(self, address: str, arena_bytes: int = 32 * MIB) -> None:
        self.outbox = Outbox(Arena(arena_bytes, lambda size: Memory(memoryview(bytearray(size)))))
        self.outbox.grow(arena_bytes, 1)
        self.alerts: list[dict[str, Any]] = []
        self.alerted = threading.Event()
        self.hello = Hello("run", bytes(range(16)), agent="test")
        self.link = Link(address, self.hello, self.outbox, self.take)
        self.link.start()

    def take(self, alert: dict[str, Any]) -> None:
        self.alerts.append(alert)
        self.alerted.set()

    def put(self, layer: str, step: int, num_bytes: int = 32) -> bytes:
        snapshot = self.outbox.reserve(layer, step, num_bytes, (num_bytes // 2, 1))
        assert snapshot is not None
        content = os.urandom(16) * (num_bytes // 16)
        snapshot.region.view[:] = content
        snapshot.dtype, snapshot.source_dtype = "bfloat16", "float32"
        self.outbox.commit(snapshot)
        self.link.wake()
        return content


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(loop, "HELLO_SECONDS", 2.0)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/push.sock"


@pytest.fixture
def router(address: str) -> Iterator[Router]:
    router = Router(address)
    yield router
    router.close()


@pytest.fixture
def setup(address: str) -> Iterator[Setup]:
    setup = Setup(address)
    yield setup
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    assert not setup.link._thread.is_alive()


def test_hello_welcome_chunk_recorded(router: Router, setup: Setup) -> None:
    content = setup.put("a", 5)
    assert router.welcome() == setup.hello
    chunk = router.chunk()
    assert (chunk.layer, chunk.step, chunk.dtype, chunk.source_dtype) == ("a", 5, "bfloat16", "float32")
    assert (chunk.shape, chunk.total_bytes, chunk.offset) == ((16, 1), 32, 0)
    assert bytes(chunk.payload) == content
    router.send(Ack("received", "a", 5, credit_bytes=32))
    assert not setup.outbox.wait_settled(0.05)
    router.send(Ack("recorded", "a", 5))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)


def test_superseded_settles_too(router: Router, setup: Setup) -> None:
    setup.put("a", 5)
    router.welcome()
    router.chunk()
    router.send(Ack("superseded", "a", 5, by_step=6))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)


def test_a_large_snapshot_goes_in_chunks_as_large_as_the_daemon_says(router: Router, setup: Setup) -> None:
    content = setup.put("a", 1, 11 * MIB)
    router.welcome(chunk_bytes=5 * MIB)
    chunks = [router.chunk() for _ in range(3)]
    assert [(chunk.offset, len(chunk.payload)) for chunk in chunks] == [
        (0, 5 * MIB),
        (5 * MIB, 5 * MIB),
        (10 * MIB, MIB),
    ]
    assert b"".join(chunk.payload for chunk in chunks) == content


def test_no_more_is_sent_than_credit_allows(router: Router, setup: Setup) -> None:
    setup.put("a", 1, 12 * MIB)
    router.welcome(credit_bytes=5 * MIB)
    assert router.chunk().offset == 0
    assert router.silent()
    router.send(Ack("received", "a", 1, credit_bytes=2 * MIB))  # less than was sent: 3 MiB to spend
    assert router.silent()
    router.send(Ack("received", "a", 1, credit_bytes=2 * MIB))
    assert router.chunk().offset == MIN_CHUNK_BYTES
    assert router.silent()


def test_small_credit_still_sends_small_layers(router: Router, setup: Setup) -> None:
    setup.put("a", 1, 64)
    router.welcome(credit_bytes=64)
    assert router.chunk().layer == "a"
    setup.put("b", 1, 64)
    assert router.silent()
    router.send(Refusal("timed_out", "", "a", 1, credit_bytes=64))  # a refusal gives credit back as well
    assert router.chunk().layer == "b"


def test_what_waits_for_credit_is_replaced_by_what_is_newer(router: Router, setup: Setup) -> None:
    router_credit = 32
    setup.put("a", 1)
    router.welcome(credit_bytes=router_credit)
    assert router.chunk().step == 1
    setup.put("a", 2)
    assert router.silent(0.05)
    content = setup.put("a", 3)
    assert setup.outbox.num_replaced == 1
    router.send(Ack("received", "a", 1, credit_bytes=router_credit))
    chunk = router.chunk()
    assert chunk.step == 3 and bytes(chunk.payload) == content


def test_credit_that_never_comes_back_makes_a_new_connection(
    router: Router, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "STARVED_SECONDS", 0.1)
    setup.put("a", 1)
    router.welcome(credit_bytes=32)
    assert router.chunk().step == 1
    setup.put("b", 1)
    router.welcome()
    assert [router.chunk().layer for _ in range(2)] == ["a", "b"]


def test_a_daemon_that_came_back_gets_everything_again(address: str, setup: Setup) -> None:
    first = Router(address)
    content = setup.put("whole", 1)
    setup.put("part", 2, 12 * MIB)
    first.welcome(credit_bytes=32 + 5 * MIB, heartbeat_seconds=0.5)
    assert first.chunk().layer == "whole"
    assert first.chunk().layer == "part"
    first.close()
    second = Router(address)  # hears a heartbeat or a chunk of somebody who has not greeted it, or a hello
    setup.put("new", 3)
    hello = second.receive(beats=True)
    if not isinstance(hello, Hello):
        second.send(Refusal("no_hello", ""))
        hello = second.receive()
    assert hello == setup.hello
    second.send(Welcome("11" * 8, 64 * MIB, MIN_CHUNK_BYTES, 60.0))
    chunks = [second.chunk() for _ in range(5)]
    assert [(chunk.layer, chunk.offset // MIB) for chunk in chunks] == [
        ("whole", 0),
        ("part", 0),
        ("part", 4),
        ("part", 8),
        ("new", 0),
    ]
    assert bytes(chunks[0].payload) == content
    second.close()


def test_no_hello_is_answered_with_hello_at_once_and_once(router: Router, setup: Setup) -> None:
    router.welcome()
    setup.put("a", 1)
    router.chunk()
    router.send(Refusal("no_hello", ""), Refusal("no_hello", ""), Refusal("no_hello", ""))
    router.welcome()
    assert router.chunk().layer == "a"
    assert router.silent()


def test_only_one_welcome_counts_for_a_hello(router: Router, setup: Setup) -> None:
    router.welcome(credit_bytes=32)
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    router.send(Welcome("00" * 8, 64 * MIB, MIN_CHUNK_BYTES, 60.0))  # nobody asked: no credit, and nothing anew
    setup.put("b", 1)
    assert router.silent()


def test_silence_makes_a_new_connection(router: Router, setup: Setup) -> None:
    router.welcome(heartbeat_seconds=0.05)
    first = router.peer
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    router.welcome()  # after three intervals of nothing
    assert router.peer != first
    assert router.chunk().layer == "a"


def test_both_sides_beat(router: Router, setup: Setup) -> None:
    router.welcome(heartbeat_seconds=0.2)
    for _ in range(5):  # longer than silence would be allowed
        assert isinstance(router.receive(beats=True), Heartbeat)
        router.send(Heartbeat())
    assert setup.link.connected


def test_a_daemon_that_does_not_answer_is_asked_again(
    router: Router, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.link._hello_seconds = 0.1
    hello = router.receive()
    assert isinstance(hello, Hello) and router.welcome() == hello


def test_a_refused_snapshot_is_not_sent_again(router: Router, setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.put("a\x1b[2J", 1, 12 * MIB)
    router.welcome(credit_bytes=4 * MIB)
    chunk = router.chunk()
    router.send(Refusal("layer_too_large", "more than \x1b[31m enough", chunk.layer, 1, credit_bytes=4 * MIB))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    setup.put("b", 1)
    assert router.chunk().layer == "b"  # nothing more of the refused one
    assert setup.link.num_refused == 1
    assert setup.link.refused == {"a\x1b[2J": "layer_too_large"}
    (record,) = caplog.records
    assert "layer_too_large" in record.getMessage() and record.getMessage().isprintable()


def test_a_passing_refusal_does_not_bar_the_layer(router: Router, setup: Setup) -> None:
    setup.put("a", 1)
    router.welcome()
    router.chunk()
    router.send(Refusal("timed_out", "", "a", 1))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS) and setup.link.refused == {}


def test_a_refused_connection_is_tried_again_ever_more_rarely(router: Router, setup: Setup) -> None:
    for _ in range(3):
        assert isinstance(router.receive(), Hello)
        router.send(Refusal("too_many_connections", "full"))
    assert isinstance(router.receive(), Hello)
    assert setup.link._retry_seconds == pytest.approx(loop.RETRY_SECONDS * 8)


GARBAGE = [
    (b"",),
    (b"\x00" * 100,),
    (b"\xff" * 1000,),
    (b"\x81\xa1t\xa7welcome",),
    (b"\x81\xa1t\xa7welcome", b"payload"),
    tuple(b"x" for _ in range(50)),
    tuple(bytes(frame) for frame in encode(Chunk("a", 1, "bfloat16", (2, 2), 8, 0, b"12345678"))),
    tuple(bytes(frame) for frame in encode(Hello("run", bytes(16)))),
]


def test_garbage_is_counted_and_nothing_else(router: Router, setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    router.welcome()
    for frames in GARBAGE:
        router.send_raw(*frames)
    router.send(Ack("recorded", "no such layer", 9), Ack("received", "none", 1, credit_bytes=(1 << 63) - 1))
    router.send(Refusal("brand_new_code", "", "no such layer", 9))
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    router.send(Ack("recorded", "a", 1))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    assert setup.link.num_wire_errors == len(GARBAGE)
    assert len([record for record in caplog.records if "no message of this protocol" in record.getMessage()]) == 1


def test_a_frame_too_large_ends_the_connection_not_the_link(router: Router, setup: Setup) -> None:
    router.welcome(heartbeat_seconds=0.3)
    router.send_raw(bytes(dealer.MAX_MESSAGE_BYTES + 1))
    setup.put("a", 1)
    message = router.receive(beats=True)
    while not isinstance(message, Hello):
        message = router.receive(beats=True)
    router.send(Welcome("00" * 8, MIB, MIN_CHUNK_BYTES, 60.0))
    assert router.chunk().layer == "a"


def test_alerts_and_plans_reach_the_client(router: Router, setup: Setup) -> None:
    router.welcome(plan=Plan(1, 10, 20))
    router.send(Plan(2, 30, 40), AlertNotice({"rule": "zero", "layer": "a"}))
    assert setup.alerted.wait(PATIENCE_SECONDS)
    assert setup.alerts == [{"rule": "zero", "layer": "a"}]
    assert setup.link.plan == Plan(2, 30, 40)


def test_stop_sends_what_is_pending_and_says_bye(router: Router, setup: Setup) -> None:
    router.welcome()
    for layer in range(50):
        setup.put(f"layer {layer}", 1)
    setup.link.stop(PATIENCE_SECONDS)
    layers = []
    while isinstance(message := router.receive(), Chunk):
        layers.append(message.layer)
    assert layers == [f"layer {layer}" for layer in range(50)]
    assert isinstance(message, Bye)


def test_stop_right_after_the_start_waits_for_the_first_attempt(router: Router, setup: Setup) -> None:
    setup.put("a", 1)
    setup.link.stop(PATIENCE_SECONDS)
    router.welcome()
    assert isinstance(router.receive(), Chunk)
    assert isinstance(router.receive(), Bye)


def test_bye_of_the_daemon_is_told_and_it_is_greeted_when_it_is_back(
    router: Router, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    router.welcome()
    router.send(Bye())
    router.welcome()
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "has ended; training goes on" in lines[0] and "connected to" in lines[1]


def test_an_absent_daemon_is_told_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(address)
    for step in range(20):
        setup.put("a", step)
    setup.link.stop(0.5)
    setup.link.join(PATIENCE_SECONDS)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no daemon is there yet; training goes on" in caplog.text
    assert setup.outbox.num_replaced == 19


def test_vanished_hosts_are_noticed_by_tcp_and_not_by_heartbeats_that_abort_the_process(address: str) -> None:
    """libzmq's own heartbeats run into an assertion where a peer goes while our queue is full."""
    router, socket_ = Router(address), dealer.Dealer(address)
    assert socket_.open() and socket_._socket is not None
    assert socket_._socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
    assert socket_._socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
    socket_.end(0.0)
    router.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_weights_are_not_sent_into_a_directory_of_somebody_else(
    address: str, router: Router, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(tmp_path, 12345, 12345)
    setup = Setup(address)
    setup.put("a", 1)
    assert router.silent(0.3)
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    (record,) = caplog.records
    assert "belongs to user id 12345" in record.getMessage()


def test_a_daemon_is_looked_up_anew_at_each_connection(tmp_path: Path) -> None:
    """In a discovery file that is not there yet, and names another daemon when the job was started again."""
    file = tmp_path / "rankd.json"

    def here(place: str) -> Router:
        address = f"ipc://{tmp_path}/{place}.sock"
        router = Router(address)
        fields = {"version": 1, **dict.fromkeys(("push", "alerts", "query"), address)}
        (tmp_path / "new").write_text(json.dumps(fields))
        (tmp_path / "new").chmod(0o644)
        (tmp_path / "new").replace(file)
        return router

    setup = Setup(file.as_uri())
    try:
        setup.put("a", 1)
        first = here("node1")
        first.welcome()
        assert first.chunk().step == 1
        first.send(Bye())
        second = here("node2")
        second.welcome()
        assert second.chunk().step == 1
        for router in (first, second):
            router.close()
    finally:
        setup.link.stop(0.0)
        setup.link.join(PATIENCE_SECONDS)
