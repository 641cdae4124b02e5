import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rankd.web.access import Access
from rankd.web.server import bind_http, make_server


@contextlib.asynccontextmanager
async def serving(
    health: dict[str, Any],
    reasons: list[str] | None = None,
    counters: Counter[str] | None = None,
    processes: list[dict[str, Any]] | None = None,
    capacity: dict[str, Any] | None = None,
) -> AsyncIterator[int]:
    """The port of a server that is stopped, within a second of being told to, at the end."""
    listening = bind_http("127.0.0.1:0", any_port=False)
    access = Access("127.0.0.1")
    why_not = lambda: reasons[-1] if reasons else None  # noqa: E731
    server = make_server(
        lambda: health, why_not, access, counters or Counter(), lambda: processes or [], lambda: capacity or {}
    )
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
        assert not task.done()
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 30)


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Status line and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\r\n")[0], answer.partition(b"\r\n\r\n")[2]


def get(path: str, host: str = "localhost", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]).encode()


async def test_healthz() -> None:
    health = {"status": "ok", "num_waiting": 0}
    async with serving(health) as port:
        status, body = await ask(port, get("/healthz"))
        assert status.endswith(b"200 OK") and json.loads(body) == health
        health["status"] = "stopping"
        assert json.loads((await ask(port, get("/healthz")))[1])["status"] == "stopping"


async def test_trainers_are_listed() -> None:
    processes = [{"run": "r", "process_rank": 1, "share": 0.004}]
    async with serving({}, processes=processes) as port:
        status, body = await ask(port, get("/trainers"))
        assert status.endswith(b"200 OK") and json.loads(body) == {"processes": processes}


async def test_capacity_is_told() -> None:
    async with serving({}, capacity={"demand": 0.5}) as port:
        status, body = await ask(port, get("/capacity"))
        assert status.endswith(b"200 OK") and json.loads(body) == {"demand": 0.5}


async def test_readyz_says_why_not() -> None:
    reasons: list[str] = []
    async with serving({}, reasons) as port:
        status, body = await ask(port, get("/readyz"))
        assert status.endswith(b"200 OK") and json.loads(body) == {"ready": True, "reason": None}
        reasons.append("stopping")
        status, body = await ask(port, get("/readyz"))
        assert status.endswith(b"503 Service Unavailable")
        assert json.loads(body) == {"ready": False, "reason": "stopping"}


async def test_a_name_that_was_made_to_lead_here_learns_nothing(caplog: pytest.LogCaptureFixture) -> None:
    counters: Counter[str] = Counter(num_waiting=1)
    async with serving({"secret": 1}, counters=counters) as port:
        for path in ("/healthz", "/readyz", "/no/such"):
            status, body = await ask(port, get(path, f"rebound.example:{port}"))
            assert b" 400 " in status and json.loads(body) == {"error": "the Host header names another host"}
        assert b" 400 " in (await ask(port, b"GET /healthz HTTP/1.0\r\n\r\n"))[0]
        assert (await ask(port, get("/healthz", f"127.0.0.1:{port}")))[0].endswith(b"200 OK")
    assert counters["num_refused_http_host"] == 4
    assert [record.message for record in caplog.records] == [
        "a request from 127.0.0.1 was refused: num_refused_http_host=1"
    ]


async def test_what_is_not_asked_for_rightly_does_no_harm() -> None:
    async with serving({}) as port:
        assert b" 404 " in (await ask(port, get("/")))[0]
        assert b" 405 " in (await ask(port, get("/healthz").replace(b"GET", b"POST")))[0]
        assert b" 400 " in (await ask(port, b"\0\1garbage\r\n\r\n"))[0]
        assert (await ask(port, get("/healthz")))[0].endswith(b"200 OK")


async def test_a_request_that_never_ends_does_not_hold_up_the_stop() -> None:
    async with serving({}) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        await writer.drain()
    writer.close()


def test_a_port_in_use_gives_way_only_where_nobody_named_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            bind_http(address, any_port=False)
        with bind_http(address, any_port=True) as other:
            host, port = other.getsockname()
            assert host == "127.0.0.1" and port != taken.getsockname()[1]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_stands_in_brackets() -> None:
    try:
        listening = bind_http("[::1]:0", any_port=False)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with listening:
        assert listening.family == socket.AF_INET6


async def test_a_request_that_does_not_come_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.web.server.REQUEST_SECONDS", 0.05)
    async with serving({}) as port:
        with contextlib.suppress(ConnectionResetError):
            assert await ask(port, b"GET /healthz HT") == (b"", b"")
        assert (await ask(port, get("/healthz").replace(b"close", b"keep-alive")))[0].endswith(b"200 OK")


async def test_whoever_has_not_asked_yet_gives_way_to_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.web.server.REQUEST_SECONDS", 1000.0)
    monkeypatch.setattr("rankd.web.server.MAX_CONNECTIONS", 10)
    counters: Counter[str] = Counter(num_waiting=1)
    async with serving({}, counters=counters) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for _, writer in slow:
            writer.write(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(5):
            assert (await ask(port, get("/healthz")))[0].endswith(b"200 OK")
        for _, writer in slow:
            writer.close()
    assert 30 <= counters["num_closed_http_waiting"] <= 40


async def test_no_peer_can_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    counters: Counter[str] = Counter(num_waiting=1)
    async with serving({}, counters=counters) as port:
        for _ in range(20):
            assert b" 400 " in (await ask(port, b"\0\1garbage\r\n\r\n"))[0]
            await ask(port, get("/healthz", "localhost", "Connection: upgrade", "Upgrade: websocket"))
    assert counters["num_refused_http_malformed"] == 20 and caplog.records == []
