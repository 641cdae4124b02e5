"""Who may ask over HTTP: the Host header on every request, and a token from whoever is not on this host."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("rankd.web")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Access:
    """The rules of one listener.

    host: what it is bound to. names: further names by which it may be asked. token: gives the token at each request, so
    that a new one needs no restart (raises ValueError where there is none to be had); None: no request needs one.

    The Host header has to name this listener, because a web page that a user of this host opens can have its own name
    resolve to this address, and read the answers (DNS rebinding). An address as Host cannot come from that; it is taken
    where the listener is open beyond loopback.

    The token is asked of requests from elsewhere, not of those from this host: what a listener on loopback tells them
    freely they may hear on any. So a container's own health check needs no secret. What a proxy on this host passes on
    comes from elsewhere.
    """

    def __init__(self, host: str, names: Iterable[str] = (), token: Callable[[], str] | None = None) -> None:
        host = host.strip("[]").lower()
        self._names = {*LOOPBACK_NAMES, host, *(name.strip("[]").lower() for name in names)}
        self._any_address = not is_loopback_host(host)
        self._token = token

    def knows(self, host_header: str) -> bool:
        """Whether a request with this Host header is meant for this listener, whatever its port."""
        host, colon, port = host_header.rpartition(":")
        if not colon or not port.isdigit():
            host = host_header
        host = host.strip("[]").lower().removesuffix(".")
        return host in self._names or (self._any_address and _is_address(host))

    def allows(self, peer: str, headers: Headers) -> bool:
        """Whether a request from the address `peer` needs no token, or has it."""
        if self._token is None:
            return True
        if is_loopback_host(peer) and not any(name in headers for name in FORWARDED):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        try:
            expected = self._token().encode()
        except ValueError as error:
            log.error("no token to compare with, so nobody is let in: %s", error)
            return False
        # Compared in any case, and in constant time: how long it takes tells nothing of the token.
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), expected)
        return same and scheme.lower() == "bearer" and bool(expected)


class Guard:
    """ASGI middleware around everything: who may not ask learns nothing, not even which paths there are."""

    def __init__(self, app: ASGIApp, access: Access, counters: Counter[str]) -> None:
        self._app = app
        self._access = access
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("",))[0]
        if not self._access.knows(headers.get("host", "")):
            self._count("num_refused_http_host", peer)
            response = _refusal(400, "the Host header names another host")
        elif not self._access.allows(peer, headers):
            self._count("num_refused_http_token", peer)
            response = _refusal(401, "a token is needed", {"WWW-Authenticate": 'Bearer realm="rankd"'})
        else:
            await self._app(scope, receive, send)
            return
        await response(scope, receive, send)

    def _count(self, name: str, peer: str) -> None:
        self._counters[name] += 1
        num_times = self._counters[name]
        if math.log10(num_times).is_integer():
            log.warning("a request from %s was refused: %s=%d", peer, name, num_times)


def is_loopback_host(host: str) -> bool:
    """Whether `host`, a name or an address, is this host and no other."""
    host = host.strip("[]").lower()
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refusal(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": error}, status, headers)
