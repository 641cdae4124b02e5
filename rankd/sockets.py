"""Binding the daemon's addresses: owner-only directories, one daemon per address, and a clear word where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import cast

import zmq
import zmq.asyncio

from rankd.auth import Authority
from rankd.config import ConfigError, ServeConfig
from rankd.door import Door
from rankd_client.endpoints import EndpointError, check_owner
from rankd_client.wire import MAX_CHUNK_BYTES
from rankd_client.wire.messages import Payload

MAX_FRAME_BYTES = {"push": MAX_CHUNK_BYTES, "alerts": 512, "query": 64 << 10}
"""Beyond this libzmq drops the connection without allocating: a payload, a topic, a query."""

RECEIVE_HWM = 8
"""Messages per connection in libzmq's queue. Credit bounds the bytes of those who keep to it; who does not has at most
this many payloads of 16 MiB taken off the network before we see the first."""

SEND_HWM = {"push": 10_000, "alerts": 10_000, "query": 8}
"""Messages that a peer may leave unread before it loses some: of about 1 kB, but replies may have 4 MB."""

KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 15),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)

NUM_PORT_TRIES = 50


class BindError(RuntimeError):
    """An address that cannot be had; the message names it and, where that is so, who may have it."""


def send_now(socket: zmq.asyncio.Socket, frames: Sequence[Payload]) -> bool:
    """Send without waiting; False where the peer is gone (ROUTER_MANDATORY) or does not read."""
    sent = cast("asyncio.Future[None]", socket.send_multipart(frames, flags=zmq.NOBLOCK))
    error = sent.exception()  # with NOBLOCK the future is done at once
    if error is not None and not isinstance(error, zmq.ZMQError):
        raise error  # ours: frames that are no bytes
    return error is None


async def let_others_run() -> None:
    """To be awaited before each receive: zmq.asyncio hands over a message that is there without a pause, so that a peer
    who sends without end would stop measuring, heartbeats and signals."""
    await asyncio.sleep(0)


class Sockets:
    """The three bound sockets and the addresses they really have."""

    def __init__(
        self,
        config: ServeConfig,
        authority: Authority | None = None,
        counters: Counter[str] | None = None,
        on_fault: Callable[[str, str | None], None] = lambda name, text: None,
    ) -> None:
        """`doors` tells for each socket, by its name, who sent a message. `on_fault` is called on any thread."""
        self.context = zmq.asyncio.Context()
        self._authority = authority or Authority(None)
        self._authority.serve(self.context)
        self.doors: dict[str, Door] = {}
        self._locks: list[int] = []
        self._names = {"push": config.push, "alerts": config.alerts, "query": config.query}
        kinds = {"push": zmq.ROUTER, "alerts": zmq.XPUB, "query": zmq.ROUTER}
        sockets = {name: self._open(name, kind) for name, kind in kinds.items()}
        self.push, self.alerts, self.query = (sockets[name] for name in kinds)
        try:
            self.addresses = self._bind(sockets)
        except BaseException:
            self.close(linger_ms=0)
            raise

    @property
    def open_to_users(self) -> bool:
        """Whether every user of this host can come in: TCP without keys."""
        return any(address.startswith("tcp://") and not self._authority.has_keys for address in self.addresses.values())

    def cut_users(self, user_ids: Set[str], reason: str) -> None:
        """End the connections of these keys."""

    def close(self, linger_ms: int = 500) -> None:
        """Closes; what is queued is sent for at most `linger_ms`."""
        self.context.destroy(linger=linger_ms)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()

    def _open(self, name: str, kind: int) -> zmq.asyncio.Socket:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES[name])
        socket.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        socket.setsockopt(zmq.SNDHWM, SEND_HWM[name])
        # A peer whose host vanished is noticed by TCP: ZeroMQ's own heartbeats were seen to abort the process in an
        # assertion (libzmq 4.3.5, stream_engine_base.cpp) when a peer hung up while our receive queue was full.
        for option, value in KEEPALIVE:
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IPV6, int("[" in self._names[name]))  # else LAST_ENDPOINT would say ::ffff:127.0.0.1
        self.doors[name] = Door(None, self._authority.secure(socket, self._names[name]))
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_MANUAL, 1)  # the publish stage says which subscriptions hold
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to nobody is an error we count, not silence
        return socket

    def _bind(self, sockets: dict[str, zmq.asyncio.Socket]) -> dict[str, str]:
        """One URL names a daemon: where all three ask for any port, take three that follow one another."""
        wanted = list(self._names.values())
        if all(address.startswith("tcp://") and address.endswith(":0") for address in wanted):
            return self._bind_any_ports(sockets)
        return {name: self._bind_one(sockets[name], name, address) for name, address in self._names.items()}

    def _bind_any_ports(self, sockets: dict[str, zmq.asyncio.Socket]) -> dict[str, str]:
        (_, first), *others = self._names.items()
        for _ in range(NUM_PORT_TRIES):
            bound = {"push": self._bind_one(sockets["push"], "push", first)}
            host, port = bound["push"].rsplit(":", 1)
            try:
                for offset, (name, _) in enumerate(others, start=1):
                    bound[name] = self._bind_one(sockets[name], name, f"{host}:{int(port) + offset}")
                return bound
            except BindError:
                for name, address in bound.items():
                    sockets[name].unbind(address)
        raise BindError(f"no three free ports in a row on {first}; give --push, --alerts and --query each")

    def _bind_one(self, socket: zmq.asyncio.Socket, name: str, address: str) -> str:
        if address.startswith("ipc://"):
            self._claim(name, Path(address.removeprefix("ipc://")))
        try:
            socket.bind(address)
        except (zmq.ZMQError, OSError) as error:
            if getattr(error, "errno", None) == zmq.EADDRINUSE:
                raise BindError(f"{name}={address} is in use; is another rankd running there?") from None
            raise BindError(f"{name}={address} cannot be bound: {error}") from None
        if address.startswith("ipc://"):
            os.chmod(address.removeprefix("ipc://"), 0o600)  # noqa: PTH101
            return address
        bound: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return bound.rstrip(b"\0").decode()

    def _claim(self, name: str, path: Path) -> None:
        """libzmq would take a living daemon's socket file away; a lock beside it shows whether that one lives."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_owner(f"ipc://{path}")
            if path.exists() and not path.is_socket():
                raise ConfigError(f"{name}=ipc://{path} is there and is no socket; expected the path of a new one")
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except EndpointError as error:
            raise ConfigError(f"{name}: {error}") from None
        except OSError as error:
            raise BindError(f"{name}=ipc://{path} cannot be made: {error}") from None
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BindError(f"{name}=ipc://{path} is in use by another rankd") from None
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
