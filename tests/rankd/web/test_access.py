from collections import Counter
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from rankd.web.access import Access, Guard

TOKEN = "t0ken-of-the-keyring"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def access(host: str = "0.0.0.0", *names: str) -> Access:
    return Access(host, names, lambda: TOKEN)


@pytest.mark.parametrize(
    "header",
    ["localhost", "localhost:7780", "LOCALHOST", "127.0.0.1:7780", "[::1]:7780", "[::1]", "node7", "node7.:80"],
)
def test_hosts_that_mean_this_listener(header: str) -> None:
    assert Access("127.0.0.1", ["node7"]).knows(header)


@pytest.mark.parametrize("header", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.7"])
def test_hosts_that_do_not(header: str) -> None:
    assert not Access("127.0.0.1").knows(header)


def test_the_bound_host_and_any_address_beyond_loopback() -> None:
    assert access("node7").knows("node7:7780") and not access("node7").knows("node8:7780")
    assert access().knows("10.0.0.7:7780") and access().knows("[fd00::7]:7780")
    assert not access().knows("evil.example:7780")


@pytest.mark.parametrize(
    ("peer", "headers", "allowed"),
    [
        ("10.0.0.7", {}, False),
        ("10.0.0.7", BEARER, True),
        ("10.0.0.7", {"authorization": f"bearer  {TOKEN} "}, True),
        ("10.0.0.7", {"authorization": f"Basic {TOKEN}"}, False),
        ("10.0.0.7", {"authorization": TOKEN}, False),
        ("10.0.0.7", {"authorization": f"Bearer {TOKEN}x"}, False),
        ("10.0.0.7", {"authorization": "Bearer"}, False),
        ("10.0.0.7", {"authorization": "Bearer tokén"}, False),
        ("10.0.0.7", {"x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.7"}, False),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.7", **BEARER}, True),
        ("", {}, False),
    ],
)
def test_who_needs_the_token(peer: str, headers: dict[str, str], allowed: bool) -> None:
    assert access().allows(peer, Headers(headers)) is allowed


def test_without_keys_nobody_needs_a_token() -> None:
    assert Access("0.0.0.0").allows("10.0.0.7", Headers({}))


def test_a_token_that_cannot_be_read_or_is_empty_lets_nobody_in() -> None:
    def unreadable() -> str:
        raise ValueError("http.token: mode 0644")

    assert not Access("0.0.0.0", (), unreadable).allows("10.0.0.7", Headers(BEARER))
    assert not Access("0.0.0.0", (), lambda: "").allows("10.0.0.7", Headers({"authorization": "Bearer "}))


async def ask(peer: str, headers: dict[str, str], counters: Counter[str], kind: str = "http") -> list[Message]:
    """What a guarded application answers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "reached"})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": "GET", "path": "/healthz", "headers": raw, "client": (peer, 1)}
    await Guard(app, access(), counters)(scope, receive, send)
    return sent


async def test_who_may_not_ask_is_told_how_to_and_counted() -> None:
    counters: Counter[str] = Counter()
    start, body = await ask("10.0.0.7", {"host": "localhost"}, counters)
    assert start["status"] == 401 and (b"www-authenticate", b'Bearer realm="rankd"') in start["headers"]
    assert body["body"] == b'{"error":"a token is needed"}'
    assert (await ask("10.0.0.7", {"host": "evil.example", **BEARER}, counters))[0]["status"] == 400
    assert await ask("10.0.0.7", {"host": "localhost", **BEARER}, counters) == [{"type": "reached"}]
    assert counters == {"num_refused_http_token": 1, "num_refused_http_host": 1}
    assert await ask("10.0.0.7", {"host": "localhost", **BEARER}, counters, "websocket") == []
