"""The HTTP listener of a daemon: bound at its construction, like the other sockets."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from rankd.config import ServeConfig
from rankd.health import Health
from rankd.sockets import BindError
from rankd.web.access import Access, is_loopback_host
from rankd.web.server import bind_http, make_server


class HttpListener:
    """`address` is what was bound, "off" where none is wanted. Raises BindError."""

    def __init__(
        self,
        config: ServeConfig,
        token: Callable[[], str],
        health: Health,
        counters: Counter[str],
    ) -> None:
        self.address = "off"
        self._socket: socket.socket | None = None
        if config.http == "off":
            return
        try:
            self._socket = bind_http(config.http, config.http_any_port)
        except OSError as error:
            hint = "give --http HOST:PORT or --http off"
            raise BindError(f"http={config.http} cannot be bound: {error.strerror}; {hint}") from None
        host, port = self._socket.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        # With keys a listener on loopback too: a proxy on this host may pass on what comes from elsewhere.
        open_to_all = config.insecure or (is_loopback_host(host) and not config.asks_for_keys)
        # The name that was given may stand for the address that was bound, and this host's for any of its addresses.
        names = [*config.http_hosts, config.http.rpartition(":")[0], config.advertise or socket.gethostname()]
        access = Access(host, names, None if open_to_all else token)
        pages = health.processes, health.capacity
        self._server = make_server(health.describe, health.why_not_ready, access, counters, *pages)

    async def serve(self) -> None:
        """Until `stop`; ends at once where there is nothing to serve."""
        if self._socket is not None:
            await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        if self._socket is not None:
            self._server.should_exit = True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
