"""Serves HTTP from within the daemon's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from rankd.web.access import Access, Guard

MAX_CONNECTIONS = 100
"""Health checks and scrapers; beyond it the one that has been waited for longest gives way."""

REQUEST_SECONDS = 3.0
"""How long a connection may take to say what it wants; uvicorn itself would wait for ever."""


class _Config(uvicorn.Config):
    counters: Counter[str]


class _Protocol(H11Protocol):
    """Closes a connection whose request does not come: in time, or before others want its place. One request a
    connection: a probe asks once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made_at = self.loop.time()
        self.loop.call_later(REQUEST_SECONDS, self._give_up)
        if len(self.connections) >= MAX_CONNECTIONS:
            others = (p for p in self.connections if isinstance(p, _Protocol) and p is not self and p.cycle is None)
            if (oldest := min(others, key=lambda p: p._made_at, default=None)) is not None:
                oldest._give_up()

    def send_400_response(self, msg: str) -> None:
        self._count("num_refused_http_malformed")
        super().send_400_response(msg)

    def _give_up(self) -> None:
        if self.cycle is None and self in self.connections:
            self._count("num_closed_http_waiting")
            self.connections.discard(self)  # at once: the request that is being read counts them
            self.transport.abort()

    def _count(self, name: str) -> None:
        if isinstance(self.config, _Config):
            self.config.counters[name] += 1


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # SIGTERM and SIGINT are the daemon's


def bind_http(address: str, any_port: bool) -> socket.socket:
    """A listening socket on `address` (HOST:PORT), or, where that port is in use and `any_port`, on a free one.
    Raises OSError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family)
    except OSError:
        if not any_port:
            raise
        return socket.create_server((host, 0), family=family)


def make_app(
    health: Callable[[], dict[str, Any]],
    why_not_ready: Callable[[], str | None],
    access: Access,
    counters: Counter[str],
    processes: Callable[[], list[dict[str, Any]]] = list,
    capacity: Callable[[], dict[str, Any]] = dict,
) -> Starlette:
    async def healthz(request: Request) -> JSONResponse:
        """Alive: 200, however degraded; `status` and `faults` say how it is."""
        return JSONResponse(health())

    async def readyz(request: Request) -> JSONResponse:
        """200 while pushes are taken and measured; else 503 with the reason."""
        reason = why_not_ready()
        return JSONResponse({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    async def trainers(request: Request) -> JSONResponse:
        """What each process that pushes tells of itself."""
        return JSONResponse({"processes": processes()})

    async def capacities(request: Request) -> JSONResponse:
        """How the time of measuring is used, asked for and shared."""
        return JSONResponse(capacity())

    pages = {"/healthz": healthz, "/readyz": readyz, "/trainers": trainers, "/capacity": capacities}
    routes = [Route(path, page) for path, page in pages.items()]
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access, counters=counters)])


def make_server(
    health: Callable[[], dict[str, Any]],
    why_not_ready: Callable[[], str | None],
    access: Access,
    counters: Counter[str],
    processes: Callable[[], list[dict[str, Any]]] = list,
    capacity: Callable[[], dict[str, Any]] = dict,
) -> uvicorn.Server:
    """A server whose `serve(sockets=[…])` runs until its `should_exit` is set.

    health: the body of /healthz. why_not_ready: the reason, None where it is. counters: gets num_refused_http_… and
    num_closed_http_waiting. processes: what /trainers lists. capacity: the body of /capacity.
    """
    config = _Config(
        make_app(health, why_not_ready, access, counters, processes, capacity),
        log_config=None,
        log_level="error",  # its warnings are what any peer can make it say, at each request; they are counted
        access_log=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        http=_Protocol,
        ws="none",
        headers=[("connection", "close")],
        proxy_headers=False,  # who asks is who connected: whether a token is needed hangs on it
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    config.counters = counters
    return _Server(config)
