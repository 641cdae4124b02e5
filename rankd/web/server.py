"""Serves HTTP from within the daemon's event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MAX_CONNECTIONS = 100
"""Health checks and scrapers; whoever wants more gets a 503."""


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


def make_app(health: Callable[[], dict[str, Any]]) -> Starlette:
    async def healthz(request: Request) -> JSONResponse:
        return JSONResponse(health())

    return Starlette(routes=[Route("/healthz", healthz)])


def make_server(health: Callable[[], dict[str, Any]]) -> uvicorn.Server:
    """A server whose `serve(sockets=[…])` runs until its `should_exit` is set."""
    config = uvicorn.Config(
        make_app(health),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    return _Server(config)
