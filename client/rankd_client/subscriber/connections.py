"""A subscriber's two connections: SUB to the daemon's alerts, DEALER to its queries."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import zmq

from rankd_client.endpoints import EndpointError, NotThereYet, check_owner, locate
from rankd_client.subscriber.request import Request
from rankd_client.wire.limits import MAX_BODY_BYTES

logger = logging.getLogger("rankd_client")

EVENT_HWM = 1_000
"""Events queued for a slow reader before the daemon drops for it: a second of a busy daemon; more comes by resume."""

REPLY_HWM = 100
"""More than the queries that can be under way."""

OUTBOX_SIZE = 100
"""Queries that wait for a connection; the tracker asks again for whatever fell out."""

MAX_FRAME_BYTES = MAX_BODY_BYTES + 1024
"""What a peer may make libzmq reserve for a frame."""

BATCH_SIZE = 100
"""Messages taken from a socket before the other one has its turn."""

KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 15),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
    (zmq.TCP_MAXRT, 30_000),  # milliseconds: keepalive says nothing while a query waits to be acknowledged
)
"""A host that vanished without a word is noticed by TCP after 30 s, and connected anew. Not by ZeroMQ's heartbeats:
where a peer goes while our queue is full, their timer aborts the process (libzmq 4.3.5, `!_io_error` in
stream_engine_base.cpp)."""


class Connections:
    """`events` and `queries` are asyncio's where `context` is; read and written without blocking all the same."""

    def __init__(self, request: Request, context: zmq.Context[Any]) -> None:
        """Raises EndpointError."""
        self.context = context
        self._request = request
        self._places: dict[str, str] = {}  # of a socket's name: where it is connected
        self._wide = False
        self._told_place = False
        self._retired: list[zmq.Socket[Any]] = []
        self._open()
        self._connect()

    def _open(self) -> None:
        self.events, self.queries = self._socket(zmq.SUB, EVENT_HWM), self._socket(zmq.DEALER, REPLY_HWM)
        for prefix in self._request.prefixes(self._wide):
            self.events.subscribe(prefix)
        self.queries.set(zmq.IMMEDIATE, 1)  # nothing is queued for nobody; the outbox keeps what is still to be asked
        self.queries.set(zmq.SNDHWM, OUTBOX_SIZE)
        # An asyncio socket's own send and receive return futures; a shadow of it is the same socket without them.
        self._events_io: zmq.Socket[bytes] = zmq.Socket.shadow(self.events)
        self._queries_io: zmq.Socket[bytes] = zmq.Socket.shadow(self.queries)

    def _socket(self, kind: int, hwm: int) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = self.context.socket(kind)
        socket.set(zmq.RCVHWM, hwm)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RECONNECT_IVL, 100)
        socket.set(zmq.RECONNECT_IVL_MAX, 2_000)
        for option, value in KEEPALIVE:
            socket.set(option, value)
        return socket

    def _connect(self) -> None:
        """To where the daemon is now: a discovery file may say another address each time, or be missing yet."""
        for socket, name in ((self.events, "alerts"), (self.queries, "query")):
            with contextlib.suppress(NotThereYet):
                self._connect_one(socket, name, locate(getattr(self._request, name), name))

    def _connect_one(self, socket: zmq.Socket[Any], name: str, address: str) -> None:
        former = self._places.get(name)
        if address == former:
            return
        check_owner(address)
        if former is not None:
            with contextlib.suppress(zmq.ZMQError):  # its host may have no address any more
                socket.disconnect(former)
        if self._request.key is not None:
            self._request.key.apply(socket, address)
        socket.set(zmq.IPV6, int("[" in address))
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise EndpointError(f"{address!r}: {error.strerror}; expected ipc://PATH or tcp://HOST:PORT") from None
        self._places[name] = address

    @property
    def complete(self) -> bool:
        """Whether it is known where both sockets connect to."""
        return len(self._places) == 2

    @property
    def query_address(self) -> str:
        """Where queries go now; "" where that is not known."""
        return self._places.get("query", "")

    @property
    def let_in(self) -> bool:
        """Whether the daemon has taken us in: without that a query could not be sent."""
        return bool(int(self._queries_io.get(zmq.EVENTS)) & zmq.POLLOUT)

    def look_again(self) -> None:
        """Where nobody is heard, the daemon may be in another place by now."""
        try:
            self._connect()
        except EndpointError as error:
            if not self._told_place:
                logger.warning("not connecting: %s", error)
            self._told_place = True

    def open_anew(self) -> None:
        """With new sockets: whom a daemon has refused, libzmq may not have ask again."""
        self._retired += [self.events, self.queries]
        self._places.clear()
        self._open()
        self.look_again()

    def widen(self) -> None:
        """Hear every namespace, once and for all."""
        if not self._wide:
            self._wide = True
            for prefix in self._request.prefixes(everybody=True):
                self.events.subscribe(prefix)

    def register(self, poller: zmq.Poller, to_send: bool) -> None:
        for socket in self._retired:
            poller.unregister(socket)
            socket.close(linger=0)
        self._retired.clear()
        poller.register(self.events, zmq.POLLIN)
        poller.register(self.queries, zmq.POLLIN | (zmq.POLLOUT if to_send else 0))

    def receive_events(self, on_frames: Callable[[list[bytes]], None]) -> None:
        _receive(self._events_io, on_frames)

    def receive_replies(self, on_frames: Callable[[list[bytes]], None]) -> None:
        _receive(self._queries_io, on_frames)

    def send(self, frames: list[bytes]) -> bool:
        """False where it cannot go at once."""
        try:
            self._queries_io.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


def _receive(socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None]) -> None:
    with contextlib.suppress(zmq.Again):
        for _ in range(BATCH_SIZE):
            on_frames(socket.recv_multipart(zmq.NOBLOCK))
