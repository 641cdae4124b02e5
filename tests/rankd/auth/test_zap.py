"""Real sockets: who gets in, and who does not."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from rankd.auth import OWNER, Authority, Grant, Keyring, authority
from rankd.auth.keyring import new_pair
from rankd.auth.zap import ENDPOINT, LOG_LINES, LOG_SECONDS, MAX_TOLD, REFUSED, DenialLog
from rankd_client.keys import Key

PATIENCE_MS = 20_000
LOOPBACK = "tcp://127.0.0.1"
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
KINDS = {"push": zmq.ROUTER, "alerts": zmq.XPUB, "query": zmq.ROUTER}
PEERS = {"push": zmq.DEALER, "alerts": zmq.SUB, "query": zmq.DEALER}


class Sockets:
    """What a daemon binds, with its keys; `knock` comes with a key and says how the handshake ended."""

    def __init__(self, keyring: Keyring, *, serve: bool = True) -> None:
        self.keyring = keyring
        self.authority = Authority(keyring)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.peers: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.server_key, _ = keyring.server()
        self._kept: list[zmq.Socket[bytes]] = []
        if serve:
            self.authority.serve(self.context)
        self.sockets, self.doors, self.addresses, self._monitors = {}, {}, {}, {}
        for name, kind in KINDS.items():
            socket = self.sockets[name] = self.context.socket(kind)
            if kind == zmq.XPUB:
                socket.setsockopt(zmq.XPUB_MANUAL, 1)  # else a subscription that another has too is not told of
            self.doors[name] = self.authority.secure(socket, f"{LOOPBACK}:0")
            self._monitors[name] = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | FAILED)
            self.addresses[name] = f"{LOOPBACK}:{socket.bind_to_random_port(LOOPBACK)}"

    def close(self) -> None:
        for socket in self.sockets.values():
            socket.disable_monitor()
        self.peers.destroy(0)
        self.context.destroy(0)

    def key(self, name: str, grant: bool = True, **rights: Any) -> Key:
        public, secret = new_pair()
        if grant:
            self.keyring.authorize(Grant(name, public, "team", **rights))
            self.authority.refresh()
        return Key(name, "team", public, secret, self.server_key)

    def connect(self, name: str, key: Key | None) -> zmq.Socket[bytes]:
        peer = self.peers.socket(PEERS[name])
        self._kept.append(peer)
        if key is not None:
            key.apply(peer, self.addresses[name])
        peer.connect(self.addresses[name])
        if name == "alerts":
            peer.subscribe(b"alert@team\0")
        else:
            peer.send(b"hello")
        return peer

    def handshake(self, name: str) -> int:
        assert self._monitors[name].poll(PATIENCE_MS), "no handshake came to an end"
        return int(recv_monitor_message(self._monitors[name])["event"])

    def first_frame(self, name: str) -> zmq.Frame:
        assert self.sockets[name].poll(PATIENCE_MS), "nothing came"
        return self.sockets[name].recv_multipart(copy=False)[-1]

    def refused(self, name: str, key: Key | None) -> None:
        """Comes, and not a message of it arrives."""
        peer = self.connect(name, key)
        assert self.handshake(name) & FAILED
        assert not self.sockets[name].poll(0)
        peer.close(0)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    keyring = Keyring(tmp_path / "keys")
    keyring.create()
    return keyring


@pytest.fixture
def daemon(keyring: Keyring) -> Iterator[Sockets]:
    sockets = Sockets(keyring)
    yield sockets
    sockets.close()


@pytest.mark.parametrize("name", KINDS)
def test_the_right_key_gets_in_under_its_name(daemon: Sockets, name: str) -> None:
    key = daemon.key("alice")
    daemon.connect(name, key)
    grant = daemon.doors[name].grant(daemon.first_frame(name))
    assert grant is not None and (grant.name, grant.namespace) == ("alice", "team")


@pytest.mark.parametrize("name", KINDS)
def test_no_key_gets_nothing(daemon: Sockets, name: str) -> None:
    daemon.refused(name, None)


@pytest.mark.parametrize("name", KINDS)
def test_a_key_that_is_not_authorized_gets_nothing(daemon: Sockets, name: str) -> None:
    daemon.key("alice")
    daemon.refused(name, daemon.key("mallory", grant=False))


@pytest.mark.parametrize("name", KINDS)
def test_the_public_half_of_a_right_key_is_not_enough(daemon: Sockets, name: str) -> None:
    alice = daemon.key("alice")
    daemon.refused(name, Key("alice", "team", alice.public, new_pair()[1], alice.server))


@pytest.mark.parametrize("name", KINDS)
def test_a_key_for_another_daemon_gets_nothing(daemon: Sockets, name: str) -> None:
    alice = daemon.key("alice")
    daemon.refused(name, Key("alice", "team", alice.public, alice.secret, new_pair()[0]))


@pytest.mark.parametrize("name", KINDS)
def test_a_revoked_key_gets_nothing_more(daemon: Sockets, name: str) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    daemon.connect(name, alice)
    before = daemon.first_frame(name)
    assert daemon.handshake(name) == zmq.EVENT_HANDSHAKE_SUCCEEDED
    daemon.keyring.revoke("alice")
    assert len(daemon.authority.refresh()) == 1
    assert daemon.doors[name].grant(before) is None  # what is still connected
    daemon.refused(name, alice)
    daemon.connect(name, bob)
    grant = daemon.doors[name].grant(daemon.first_frame(name))
    assert grant is not None and grant.name == "bob"


@pytest.mark.parametrize("name", KINDS)
def test_a_man_in_the_middle_with_a_key_of_his_own_gets_nothing(daemon: Sockets, name: str, tmp_path: Path) -> None:
    other = Keyring(tmp_path / "his")
    other.create()
    his = Sockets(other)
    try:
        alice = daemon.key("alice")
        other.authorize(Grant("alice", alice.public))  # he lets everybody in
        his.authority.refresh()
        his.refused(name, alice)
    finally:
        his.close()


def test_a_key_that_is_authorized_late_gets_in_by_the_same_socket(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a plain refusal libzmq would not try again."""
    monkeypatch.setattr(authority, "HANDSHAKE_MS", 100)
    daemon = Sockets(keyring)
    try:
        early = daemon.key("early", grant=False)
        peer = daemon.connect("alerts", early)
        assert daemon.handshake("alerts") == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        keyring.authorize(Grant("early", early.public, "team"))
        daemon.authority.refresh()
        poller = zmq.Poller()  # a subscriber that reads: it is then that libzmq sends its subscriptions again
        for socket in (peer, daemon.sockets["alerts"]):
            poller.register(socket, zmq.POLLIN)
        assert poller.poll(PATIENCE_MS)
        grant = daemon.doors["alerts"].grant(daemon.first_frame("alerts"))
        assert grant is not None and grant.name == "early"
    finally:
        daemon.close()


def test_with_nobody_to_ask_nobody_gets_in(keyring: Keyring) -> None:
    sockets = Sockets(keyring, serve=False)
    try:
        sockets.refused("push", sockets.key("alice"))
    finally:
        sockets.close()


def test_on_ipc_and_without_keys_who_comes_is_the_owner(keyring: Keyring, socket_dir: Path) -> None:
    for keys, address in (
        (Authority(keyring), f"ipc://{socket_dir}/push.sock"),
        (Authority(None), "tcp://127.0.0.1:*"),
    ):
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keys.serve(context)
        socket = context.socket(zmq.ROUTER)
        door = keys.secure(socket, address)
        socket.bind(address)
        peer = context.socket(zmq.DEALER)
        peer.connect(socket.last_endpoint)
        peer.send(b"hello")
        assert socket.poll(PATIENCE_MS)
        assert door.grant(socket.recv_multipart(copy=False)[-1]) is OWNER
        context.destroy(0)


def test_a_message_without_a_key_is_nobodys_where_keys_are_asked_for(daemon: Sockets) -> None:
    assert daemon.doors["push"].grant(zmq.Frame(b"from nowhere")) is None


def question(*, version: bytes = b"1.0", domain: bytes = b"rankd", mechanism: bytes = b"CURVE", credentials: Any = ()):
    return [b"", version, b"7", domain, b"10.0.0.1", b"", mechanism, *credentials]


def test_malformed_questions_end_nothing(daemon: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    alice = daemon.key("alice")
    asker = daemon.context.socket(zmq.DEALER)
    asker.setsockopt(zmq.LINGER, 0)
    asker.connect(ENDPOINT)
    for frames in ([b""], [b"x"], [b"", b"1.0"], [b"\xff"] * 50):
        asker.send_multipart(frames)  # not answered: there is nobody to answer to
    raw = zmq.utils.z85.decode(alice.public)
    for asked, status in (
        (question(credentials=[raw]), b"200"),
        (question(credentials=[bytes(32)]), REFUSED),
        (question(credentials=[raw, raw]), REFUSED),
        (question(credentials=[raw[:31]]), REFUSED),
        (question(), REFUSED),
        (question(domain=b"other", credentials=[raw]), REFUSED),
        (question(mechanism=b"NULL"), REFUSED),
        (question(mechanism=b"PLAIN", credentials=[b"alice", b"password"]), REFUSED),
        (question(version=b"9.9", credentials=[raw]), b"500"),
        ([b"", b"1.0", b"7", b"rankd"], b"500"),
    ):
        asker.send_multipart(asked)
        assert asker.poll(PATIENCE_MS)
        empty, version, request_id, code, _, user_id, _ = asker.recv_multipart()
        assert (empty, version, request_id, code) == (b"", b"1.0", b"7", status)
        assert bool(user_id) == (status == b"200")
    daemon.connect("push", alice)
    assert daemon.doors["push"].grant(daemon.first_frame("push")) is not None
    asker.close()


def test_a_fault_of_ours_lets_nobody_in_and_the_next_is_answered(
    daemon: Sockets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice = daemon.key("alice")
    view = daemon.authority._view
    monkeypatch.setattr(daemon.authority, "_view", None)
    peer = daemon.connect("push", alice)
    asker = daemon.context.socket(zmq.DEALER)
    asker.connect(ENDPOINT)
    asker.send_multipart(question(mechanism=b"NULL"))
    assert asker.poll(PATIENCE_MS) and asker.recv_multipart()[3] == REFUSED
    assert not daemon.sockets["push"].poll(0)
    peer.close(0)
    asker.close(0)
    monkeypatch.setattr(daemon.authority, "_view", view)
    daemon.connect("query", alice)
    assert daemon.doors["query"].grant(daemon.first_frame("query")) is not None


def test_a_refused_key_is_told_of_once_with_its_public_half(daemon: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    mallory = daemon.key("mallory", grant=False)
    daemon.refused("push", mallory)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1 and mallory.public in lines[0] and "127.0.0.1" in lines[0]
    assert mallory.secret not in caplog.text


def test_our_own_process_is_not_given_as_the_address(caplog: pytest.LogCaptureFixture) -> None:
    DenialLog(Clock()).add("key", b"localhost:0:0:4711")
    assert [record.getMessage() for record in caplog.records] == ["refused the key key"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_new_keys_without_end_fill_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    denials = DenialLog(clock)
    for i in range(10_000):
        denials.add(f"key {i}", b"10.0.0.1\x1b[31m")
    assert len(caplog.records) == LOG_LINES and "\x1b" not in caplog.text
    for minute in range(1, 100):
        clock.now = minute * LOG_SECONDS
        for i in range(100):
            denials.add(f"key {minute}.{i}", b"")
    assert len(caplog.records) == 100 * LOG_LINES
    assert "9990 refusals before it" in caplog.records[LOG_LINES].getMessage()
    assert len(denials._told) <= MAX_TOLD
