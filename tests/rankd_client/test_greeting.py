"""Links that come with a key, the wrong one or none, to real sockets."""

import contextlib
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils.monitor import recv_monitor_message

from rankd_client.arena import Arena, Memory
from rankd_client.console import FaultLog
from rankd_client.greeting import Inquiry, mechanism_at, refusal
from rankd_client.keys import Key
from rankd_client.link import Link, conversation
from rankd_client.outbox import Outbox
from rankd_client.wire import Hello, decode

PATIENCE_SECONDS = 20.0
SERVER, OTHER, OURS = (tuple(key.decode() for key in zmq.curve_keypair()) for _ in range(3))
KEY = Key("alice", "team", *OURS, server=SERVER[0])


class Router:
    """A daemon's push socket on TCP; with the pair `keys`, one that asks for keys and takes every one."""

    def __init__(self, keys: tuple[str, str] | None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        if keys is not None:
            self.socket.curve_server = True
            self.socket.curve_secretkey = keys[1].encode()
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_ACCEPTED)
        self.address = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    def accepted(self, num_times: int) -> None:
        for _ in range(num_times):
            assert self.monitor.poll(1000 * PATIENCE_SECONDS), "nobody came"
            recv_monitor_message(self.monitor)

    def close(self) -> None:
        self.socket.disable_monitor()
        self.context.destroy(0)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.said.put(record.getMessage())

    def next(self) -> str:
        return self.said.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    monkeypatch.setattr(conversation, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(conversation, "RETRY_SECONDS", 0.05)
    handler = Lines()
    logging.getLogger("rankd_client").addHandler(handler)
    yield handler
    logging.getLogger("rankd_client").removeHandler(handler)


@pytest.fixture
def start() -> Iterator[Callable[[str, Key | None], Link]]:
    links: list[Link] = []

    def start_link(address: str, key: Key | None) -> Link:
        outbox = Outbox(Arena(1 << 20, lambda size: Memory(memoryview(bytearray(size)))))
        links.append(Link(address, Hello("run", bytes(16), agent="test"), outbox, lambda alert: None, key))
        links[-1].start()
        return links[-1]

    yield start_link
    for link in links:
        link.stop(0.0)
        link.join(PATIENCE_SECONDS)
        assert not link._thread.is_alive()


@pytest.fixture
def router(request: pytest.FixtureRequest) -> Iterator[Router]:
    router = Router(request.param)
    yield router
    router.close()


@pytest.mark.parametrize("router", [SERVER], indirect=True)
def test_the_right_key_says_hello(router: Router, start: Callable[[str, Key | None], Link], lines: Lines) -> None:
    start(router.address, KEY)
    assert router.socket.poll(1000 * PATIENCE_SECONDS)
    assert isinstance(decode(router.socket.recv_multipart()[1:]), Hello)
    assert lines.said.empty()


@pytest.mark.parametrize(
    ("router", "key", "line"),
    [
        (SERVER, None, "has keys, set RANKD_KEY"),
        (OTHER, KEY, "did not accept the key alice"),  # a man in the middle, with a pair of his own
        (None, KEY, "has no keys, so nothing shows that it is the one"),  # or with none
    ],
    indirect=["router"],
)
def test_with_the_wrong_one_nothing_is_sent_and_one_line_says_why(
    router: Router, key: Key | None, line: str, start: Callable[[str, Key | None], Link], lines: Lines
) -> None:
    link = start(router.address, key)
    said = lines.next()
    assert line in said and router.address in said and "training goes on" in said
    router.accepted(8)  # it comes again and again
    assert not link.connected
    link.stop(0.0)
    link.join(PATIENCE_SECONDS)
    assert lines.said.empty()
    assert not router.socket.poll(0)


def test_where_nobody_is_there_it_says_so(start: Callable[[str, Key | None], Link], lines: Lines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start(f"tcp://127.0.0.1:{port}", KEY)
    assert "no daemon is there yet" in lines.next()


@pytest.mark.parametrize(("router", "mechanism"), [(None, "NULL"), (SERVER, "CURVE")], indirect=["router"])
def test_how_a_daemon_greets(router: Router, mechanism: str) -> None:
    assert mechanism_at(router.address, PATIENCE_SECONDS) == mechanism


def greeted_by(answer: bytes) -> str | None:
    """What is made of a peer that says `answer`, whatever it hears, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer, contextlib.suppress(OSError):  # whoever has read enough is gone
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(100):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return mechanism_at(f"tcp://127.0.0.1:{server.getsockname()[1]}", PATIENCE_SECONDS)
        finally:
            thread.join()


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"PLAIN".ljust(20, b"\0")


def test_a_greeting_is_read_and_what_is_none_is_none() -> None:
    assert greeted_by(GREETING) == "PLAIN"
    for answer in (
        b"",
        GREETING[:-1],
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        GREETING.replace(b"\x7f\x03", b"\x7f\x01"),
        GREETING.replace(b"PLAIN", b"\x1b[31m"),
    ):
        assert greeted_by(answer) is None


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=80))
def test_whatever_a_peer_says_ends_in_a_name_or_none(answer: bytes) -> None:
    found = greeted_by(answer)
    assert found is None or found.isalnum()


def test_a_silent_peer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert mechanism_at(f"tcp://127.0.0.1:{server.getsockname()[1]}", 0.05) is None


@pytest.mark.parametrize("address", ["tcp://:7", "tcp://127.0.0.1:x", "tcp://127.0.0.1:99999999", "tcp://a\0b:7"])
def test_an_address_that_is_none_is_nobodys(address: str) -> None:
    assert mechanism_at(address, 0.1) is None


@pytest.mark.parametrize(
    ("mechanism", "key"), [("NULL", None), (None, None), (None, KEY), ("PLAIN", None), ("PLAIN", KEY)]
)
def test_what_may_not_be_for_the_keys_sake_is_not_put_down_to_it(mechanism: str | None, key: Key | None) -> None:
    assert refusal("tcp://127.0.0.1:7", mechanism, key) is None


def test_no_secret_is_in_a_refusal() -> None:
    for mechanism in ("NULL", "CURVE"):
        assert KEY.secret not in (refusal("tcp://127.0.0.1:7", mechanism, KEY) or "")


def test_an_ipc_address_is_not_asked(lines: Lines) -> None:
    inquiry = Inquiry(None, FaultLog("ipc:///nowhere"), lambda: pytest.fail("was asked"))
    inquiry.start("ipc:///nowhere/push.sock")
    assert "no daemon is there yet" in lines.next()
