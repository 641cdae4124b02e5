"""Who has no right gets nothing, at each socket of a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq
from typer.testing import CliRunner

from rankd.cli import app
from rankd_client import Client, asubscribe, subscribe
from rankd_client.keys import load_key
from rankd_client.wire import Hello, Query, encode, encode_query

pytestmark = pytest.mark.e2e

SECRET = "secret-run"
REFUSED_SECONDS = 1.0
"""What is refused does not come; so long a wait shows that it does not."""
WAIT_SECONDS = 30.0
"""For what does come."""


def environment() -> dict[str, str]:
    """The test's own, without settings of rankd that the machine may have."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}


def keys(*arguments: str) -> None:
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture
def guarded(serve: Any, directory: Path) -> Iterator[Any]:
    """A daemon with keys on loopback TCP; alice and bob have a namespace each, root is admin, eve's daemon is another,
    paul may only push, sue only subscribe."""
    ring = directory / "keys"
    for name, *options in (
        ("alice", "--namespace", "alice"),
        ("bob", "--namespace", "bob"),
        ("root", "--rights", "admin"),
        ("paul", "--namespace", "alice", "--rights", "push"),
        ("sue", "--namespace", "alice", "--rights", "subscribe"),
    ):
        keys("new", name, *options, "--keys", str(ring), "-o", str(directory / f"{name}.key"))
    keys("new", "eve", "--keys", str(directory / "others"), "-o", str(directory / "eve.key"))
    yield serve("--keys", str(ring), "--data", str(directory / "data"), url="tcp://127.0.0.1:0")


def push(served: Any, key: Path | None, step: int, run: str = SECRET) -> bool:
    """Whether a matrix of NaN, which is an alert at once, was recorded."""
    client = Client(run, served.ready["push"], key=None if key is None else str(key), echo=False, max_overhead=None)
    try:
        client.push({"w": torch.full((2, 2), float("nan") if step % 2 else 1.0)}, step=step)
        return client.flush(20 if key is not None and key.stem in ("alice", "bob", "paul") else REFUSED_SECONDS)
    finally:
        client.close()


def heard(served: Any, key: Path | None, run: str | None = None, at_least: int = 0) -> list[dict[str, Any]]:
    """What the state and the stream tell: so many items, whenever they come, and whatever follows within a second."""
    found: list[dict[str, Any]] = []

    async def listen() -> None:
        items = asubscribe(served.ready["push"], run, key=None if key is None else str(key))
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(WAIT_SECONDS if len(found) < at_least else REFUSED_SECONDS):
                    found.append(dict(await anext(items)))

    asyncio.run(listen())
    return found


def test_two_users_runs_of_one_name_never_meet(guarded: Any, directory: Path) -> None:
    assert push(guarded, directory / "alice.key", 1) and push(guarded, directory / "bob.key", 1)
    for name in ("alice", "bob"):
        for run in (None, SECRET, f"@{name}/{SECRET}"):
            own = heard(guarded, directory / f"{name}.key", run, at_least=1)
            assert [alert["run"] for alert in own] == [f"@{name}/{SECRET}"]
    seen = {alert["run"] for alert in heard(guarded, directory / "root.key", at_least=2)}
    assert seen == {f"@alice/{SECRET}", f"@bob/{SECRET}"}, "an admin sees all"
    with pytest.raises(PermissionError):
        heard(guarded, directory / "alice.key", f"@bob/{SECRET}", at_least=1)


def test_a_live_stream_shows_nothing_of_others(guarded: Any, directory: Path) -> None:
    """A subscriber of bob's who asks ZeroMQ for everything hears alice's alerts neither by topic nor by heartbeat."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stream = context.socket(zmq.SUB)
    stream.setsockopt(zmq.RCVTIMEO, int(1000 * WAIT_SECONDS))
    load_key(directory / "bob.key").apply(stream, guarded.ready["alerts"])
    stream.connect(guarded.ready["alerts"])
    for prefix in (b"", b"a", b"alert", b"alert@alice\0", b"heartbeat@alice\0", b"heartbeat", b"heartbeat@bob\0"):
        stream.subscribe(prefix)
    try:
        assert stream.recv_multipart()[0] == b"heartbeat@bob\0", "the connection is up"
        assert push(guarded, directory / "alice.key", 1)
        received = [stream.recv_multipart() for _ in range(3)]
        assert {frames[0] for frames in received} == {b"heartbeat@bob\0"}
        assert SECRET.encode() not in b"".join(b"".join(frames) for frames in received)
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("name", [None, "eve"], ids=["no key", "a key of another daemon"])
def test_without_a_key_nothing_is_said_or_taken(guarded: Any, directory: Path, name: str | None) -> None:
    key = None if name is None else directory / f"{name}.key"
    assert push(guarded, directory / "alice.key", 1)
    assert not push(guarded, key, 3)
    assert heard(guarded, key) == []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for socket_name, frames in (
            ("push", encode(Hello(SECRET, b"s" * 16))),
            ("query", encode_query(Query("state", 1))),
        ):
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.RCVTIMEO, int(1000 * REFUSED_SECONDS))
                if key is not None:
                    load_key(key).apply(socket, guarded.ready[socket_name])
                socket.connect(guarded.ready[socket_name])
                socket.send_multipart(frames)
                with pytest.raises(zmq.Again):
                    socket.recv_multipart()
    finally:
        context.destroy(linger=0)


def test_a_right_to_one_thing_is_none_to_another(
    guarded: Any, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert push(guarded, directory / "paul.key", 1), "may push"
    with pytest.raises(PermissionError):
        heard(guarded, directory / "paul.key", at_least=1)
    client = Client("r", guarded.ready["push"], key=str(directory / "sue.key"), echo=False, max_overhead=None)
    client.push({"w": torch.full((2, 2), float("nan"))}, step=3)
    until = time.monotonic() + WAIT_SECONDS
    while "this key may not push" not in caplog.text and time.monotonic() < until:
        time.sleep(0.05)
    client.close()
    assert "(not_allowed: this key may not push); training goes on" in caplog.text
    seen = heard(guarded, directory / "sue.key", at_least=1)
    assert [alert["step"] for alert in seen] == [1], "may subscribe, and saw one alert"
    assert "not_allowed" in guarded.log.read_text() or "refused" in guarded.log.read_text()


def test_a_revoked_key_ends_without_a_restart(guarded: Any, directory: Path) -> None:
    client = Client("r", guarded.ready["push"], key=str(directory / "alice.key"), echo=False, max_overhead=None)
    items = subscribe(guarded.ready["push"], key=str(directory / "alice.key"), timeout=20)
    received: list[int] = []
    refused: list[Exception] = []

    def read() -> None:
        try:
            received.extend(item["step"] for item in items)
        except PermissionError as error:
            refused.append(error)

    reading = threading.Thread(target=read)
    try:
        client.push({"w": torch.full((2, 2), float("nan"))}, step=1)
        assert client.flush(20)
        reading.start()
        keys("revoke", "alice", "--keys", str(directory / "keys"))
        until = time.monotonic() + 20
        while client.connected and time.monotonic() < until:
            time.sleep(0.05)
        assert not client.connected and "key alice is revoked" in guarded.log.read_text()
        revoked = Client("r", guarded.ready["push"], key=str(directory / "alice.key"), echo=False, max_overhead=None)
        revoked.push({"u": torch.full((2, 2), float("nan"))}, step=3)
        assert not revoked.flush(REFUSED_SECONDS)
        revoked.close()
        client.push({"v": torch.full((2, 2), float("nan"))}, step=5)
        assert not client.flush(REFUSED_SECONDS)
        assert push(guarded, directory / "paul.key", 7, run="r"), "of the same namespace, and not revoked"
        reading.join(30)
        assert not reading.is_alive() and received == [1]
        assert len(refused) == 1 and "did not accept" in str(refused[0])
    finally:
        reading.join(30)
        client.close()
        items.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_http_asks_who_is_elsewhere_for_the_token(serve: Any, directory: Path, host: str) -> None:
    """On loopback, where a proxy may pass on what comes from elsewhere, as well."""
    keys("new", "k", "--keys", str(directory / "keys"), "-o", str(directory / "k.key"))
    served = serve("--keys", str(directory / "keys"), "--http", f"{host}:0")
    port = served.ready["http"].rpartition(":")[2]

    def get(**headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                assert json.load(reply)["status"] == "ok"
                return int(reply.status)
        except urllib.error.HTTPError as error:
            assert b"stream_id" not in error.read()
            error.close()
            return error.code

    token = (directory / "keys" / "http.token").read_text().strip()
    elsewhere = {"X-Forwarded-For": "203.0.113.9"}  # as a proxy on this host passes it on
    assert [get(), get(**elsewhere), get(Authorization="Bearer wrong", **elsewhere)] == [200, 401, 401]
    assert get(Authorization=f"Bearer {token}", **elsewhere) == 200
    assert get(Host="evil.example") == 400


def test_beyond_loopback_without_keys_it_does_not_start(directory: Path) -> None:
    command = [sys.executable, "-m", "rankd", "serve", "--url", "tcp://0.0.0.0:0", "--http", "off"]
    home = {**environment(), "XDG_CONFIG_HOME": str(directory)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=home)
    assert done.returncode == 2 and "rankd keys new" in done.stderr and "--insecure" in done.stderr
