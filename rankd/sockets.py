"""The daemon's three sockets: libzmq's in a private directory, and before them the gate, where peers connect. And, on
ipc, the socket by which clients lend their memory."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import zmq
import zmq.asyncio

from rankd.auth import Authority
from rankd.binding import arena_path, bind_path, bind_port
from rankd.config import ConfigError, ServeConfig
from rankd.door import Door
from rankd.gate import ALERTS_LIMITS, QUERY_LIMITS, Gate, push_limits
from rankd_client.endpoints import MAX_SOCKET_PATH_BYTES, EndpointError, check_owner
from rankd_client.keys import needs_key
from rankd_client.wire.messages import Payload

log = logging.getLogger("rankd.sockets")

FRAME_SLACK_BYTES = 128
"""libzmq bounds frames as well, with this on top of the gate's bound: CURVE and commands make them longer."""

RECEIVE_HWM = 8
"""Messages per connection in libzmq's queue; the gate bounds their bytes."""

SEND_HWM = {"push": 10_000, "alerts": 10_000, "query": 8}
"""Messages that a peer may leave unread before it loses some: of about 1 kB, but replies may have 4 MB."""

PRIVATE_PREFIX = "rankd-gate-"

INNER_BACKLOG = 1024
INNER_BUFFER_BYTES = 1 << 20
"""Of the kernel, for what goes from the gate to libzmq; it gives what it has."""

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


def receive_now(socket: zmq.asyncio.Socket) -> list[zmq.Frame] | None:
    """A message that is there already; None where there is none."""
    received = cast("asyncio.Future[list[zmq.Frame]]", socket.recv_multipart(zmq.NOBLOCK, copy=False))
    error = received.exception()  # with NOBLOCK the future is done at once
    if error is not None and not isinstance(error, zmq.Again):
        raise error
    return None if error is not None else received.result()


async def let_others_run() -> None:
    """To be awaited before each receive: zmq.asyncio hands over a message that is there without a pause, so that a peer
    who sends without end would stop measuring, heartbeats and signals."""
    await asyncio.sleep(0)


class Sockets:
    """The three sockets and the addresses at which peers reach them.

    authority: whose keys TCP peers need, if any. on_fault(kind, text or None) is called on the gate's thread.
    """

    def __init__(
        self,
        config: ServeConfig,
        authority: Authority | None = None,
        counters: Counter[str] | None = None,
        on_fault: Callable[[str, str | None], None] = lambda kind, text: None,
    ) -> None:
        authority = authority or Authority(None)
        self._directory, lock = make_private_directory()
        self._locks = [lock]
        self._bound: dict[str, socket.socket] = {}
        self._names = {"push": config.push, "alerts": config.alerts, "query": config.query}
        self.context = zmq.asyncio.Context()
        self.gate = Gate(self._directory, Counter() if counters is None else counters, on_fault, end_process)
        self.open_to_users = any(needs_key(address) for address in self._names.values()) and not authority.has_keys
        """Whether every user of this host can reach a socket."""
        try:
            self.addresses = self._bind()
            self.arena = self._bind_arena(config.push)
            """Not listening yet; None where pushes come over a network."""
            authority.serve(self.context)
            self.doors: dict[str, Door] = {}
            self.push = self._open("push", zmq.ROUTER, authority)
            self.alerts = self._open("alerts", zmq.XPUB, authority)
            self.query = self._open("query", zmq.ROUTER, authority)
            self._listen(config, authority)
        except BaseException:
            self.close(linger_ms=0)
            raise

    def close(self, linger_ms: int = 500) -> None:
        """Closes; what is queued is sent for at most `linger_ms`."""
        self.gate.stop_accepting()
        self.context.destroy(linger=linger_ms)
        self.gate.close(linger_ms / 1000)
        for bound in self._bound.values():
            bound.close()
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _open(self, name: str, kind: int, authority: Authority) -> zmq.asyncio.Socket:
        """A socket of libzmq's that the gate alone can reach."""
        seed_routing_ids()
        opened = self.context.socket(kind)
        opened.setsockopt(zmq.LINGER, 0)
        opened.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        opened.setsockopt(zmq.SNDHWM, SEND_HWM[name])
        opened.setsockopt(zmq.BACKLOG, INNER_BACKLOG)
        opened.setsockopt(zmq.RCVBUF, INNER_BUFFER_BYTES)
        opened.setsockopt(zmq.SNDBUF, INNER_BUFFER_BYTES)
        if kind == zmq.ROUTER:
            opened.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to nobody is an error we count, not silence
        else:
            opened.setsockopt(zmq.XPUB_MANUAL, 1)  # a subscription holds once it was allowed
        keys = authority.secure(opened, self._names[name])
        self.doors[name] = Door(self.gate, keys)
        return opened

    def _listen(self, config: ServeConfig, authority: Authority) -> None:
        kinds = {
            "push": push_limits(config.limits.credit_bytes, config.limits.total_credit_bytes),
            "alerts": ALERTS_LIMITS,
            "query": QUERY_LIMITS,
        }
        most = {name: getattr(config.limits, name) for name in ("max_connections", "max_connections_per_peer")}
        limits = {name: replace(kind, **most) for name, kind in kinds.items()}
        for name, inner in (("push", self.push), ("alerts", self.alerts), ("query", self.query)):
            path = f"{self._directory}/{name}"
            inner.setsockopt(zmq.MAXMSGSIZE, limits[name].max_frame_bytes + FRAME_SLACK_BYTES)
            inner.bind(f"ipc://{path}")
            mechanism = "CURVE" if authority.has_keys and needs_key(self._names[name]) else "NULL"
            self.gate.listen(name, self._bound[name], path, mechanism, limits[name])
        self.gate.start()

    def _bind(self) -> dict[str, str]:
        """One URL names a daemon: where all three ask for any port, take three that follow one another."""
        wanted = list(self._names.values())
        if all(address.startswith("tcp://") and address.endswith(":0") for address in wanted):
            return self._bind_any_ports()
        return {name: self._bind_one(name, address) for name, address in self._names.items()}

    def _bind_any_ports(self) -> dict[str, str]:
        (_, first), *others = self._names.items()
        for _ in range(NUM_PORT_TRIES):
            addresses = {"push": self._bind_one("push", first)}
            host, port = addresses["push"].rsplit(":", 1)
            try:
                for offset, (name, _) in enumerate(others, start=1):
                    addresses[name] = self._bind_one(name, f"{host}:{int(port) + offset}")
                return addresses
            except BindError:
                for name in list(self._bound):
                    self._bound.pop(name).close()
        raise BindError(f"no three free ports in a row on {first}; give --push, --alerts and --query each")

    def _bind_one(self, name: str, address: str) -> str:
        """Binds, for the gate to listen on later; returns the address that it really has."""
        try:
            if address.startswith("ipc://"):
                self._claim(name, Path(address.removeprefix("ipc://")))
                self._bound[name] = bind_path(address.removeprefix("ipc://"))
                return address
            self._bound[name] = bind_port(address)
        except OSError as error:
            if error.errno == zmq.EADDRINUSE:
                raise BindError(f"{name}={address} is in use; is another rankd running there?") from None
            raise BindError(f"{name}={address} cannot be bound: {error.strerror}") from None
        except OverflowError:
            raise BindError(f"{name}={address} cannot be bound: no such port") from None
        host, port = self._bound[name].getsockname()[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def _bind_arena(self, push: str) -> socket.socket | None:
        """Beside the push socket. Nobody needs it, so that what is in its way is only told of."""
        if not push.startswith("ipc://"):
            return None
        path = arena_path(Path(push.removeprefix("ipc://")))
        try:
            self._claim("arena", path)
            self._bound["arena"] = bind_path(str(path), socket.SOCK_SEQPACKET)
        except (BindError, ConfigError, OSError) as error:
            log.warning("clients lend no memory here: %s", error)
            return None
        return self._bound["arena"]

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


def seed_routing_ids() -> None:
    """A ROUTER numbers its peers from rand() on, which nobody seeds: every daemon's first would have the same number. A
    peer that chooses as its own one that is about to be given makes libzmq abort the process (docs/security.md)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no such function, or none that we can call
        ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))


def make_private_directory() -> tuple[Path, int]:
    """A new one that only this user can enter, with a path short enough for sockets in it; and the lock that shows that
    its daemon lives. Those that killed daemons left are removed."""
    parents = [parent for parent in (tempfile.gettempdir(), "/tmp") if len(parent) < MAX_SOCKET_PATH_BYTES - 40]
    for left in Path(parents[0]).glob(f"{PRIVATE_PREFIX}*"):
        _remove_if_left(left)
    while True:
        try:
            directory = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=parents[0]))
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BindError(f"a private directory in {parents[0]} cannot be made: {error.strerror}") from None
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / "lock").exists():
            return directory, lock
        os.close(lock)  # another daemon came by before it was locked, and took it for left


def _remove_if_left(directory: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or locked
        lock = os.open(directory / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory)
        finally:
            os.close(lock)


def end_process(error: BaseException) -> None:
    """The gate's thread cannot raise into the main one; a daemon that takes nothing must not live on."""
    log.critical("the gate crashed", exc_info=error)
    logging.shutdown()
    os._exit(1)
