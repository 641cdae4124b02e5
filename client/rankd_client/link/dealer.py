"""The client's socket: one DEALER at a time, with the options that make ZeroMQ a good guest in a training process."""

from __future__ import annotations

from pathlib import Path

import zmq

from rankd_client.endpoints import NotThereYet, check_owner, locate
from rankd_client.keys import Key
from rankd_client.snapshot import Tracker
from rankd_client.wire import Chunk, Message, encode

SEND_HIGH_WATER = 8
"""Messages that ZeroMQ may hold for us: two chunks keep the pipe full, a few more save wake-ups with small layers; each
one pins a snapshot's memory while a daemon stands still."""

RECEIVE_HIGH_WATER = 1000
MAX_MESSAGE_BYTES = 1 << 20
"""A daemon sends headers and alerts; nobody has us reserve more for one frame."""

# No heartbeats of ZeroMQ's own: where a peer goes while our receive queue is full, its timer runs into an assertion of
# libzmq (4.3.5, `!_io_error` in stream_engine_base.cpp), and that aborts the trainer. Silence of the daemon is noticed
# by the protocol's heartbeats; TCP's keepalive ends connections that libzmq itself would take for alive.
OPTIONS = (
    (zmq.SNDHWM, SEND_HIGH_WATER),
    (zmq.RCVHWM, RECEIVE_HIGH_WATER),
    (zmq.IMMEDIATE, 1),  # nothing is queued for nobody
    (zmq.LINGER, 0),  # the interpreter ends when it wants to
    (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
    (zmq.IPV6, 1),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 15),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
    (zmq.RECONNECT_IVL, 100),
    (zmq.RECONNECT_IVL_MAX, 2000),
)


class Dealer:
    """Opened and closed any number of times; owned by one thread. Its context is its own and made when first needed."""

    def __init__(self, address: str, key: Key | None = None) -> None:
        self.address = address
        self.located = address
        """Where it connected last: a discovery file may say another address each time."""
        self._key = key
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None

    def open(self) -> bool:
        """Begin to connect; False if nobody can be there (an ipc socket or a discovery file that does not exist).

        Raises EndpointError if the address is not one to send weights to, zmq.ZMQError if it is none at all. ZeroMQ
        connects again by itself, so whoever needs the directory's owner looked at again closes and opens.
        """
        try:
            address = locate(self.address, "push")
        except NotThereYet:
            return False
        self.located = address
        check_owner(address)
        if address.startswith("ipc://") and not Path(address.removeprefix("ipc://")).exists():
            return False
        if self._context is None:
            self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in OPTIONS:
            self._socket.setsockopt(option, value)
        if self._key is not None:
            self._key.apply(self._socket, address)
        self._socket.connect(address)
        return True

    def close(self, linger_seconds: float = 0.0) -> None:
        if self._socket is not None:
            self._socket.close(linger=int(1000 * linger_seconds))
            self._socket = None

    def end(self, linger_seconds: float) -> None:
        """Close for good; waits up to `linger_seconds` for what was sent to be on its way."""
        self.close(linger_seconds)
        if self._context is not None:
            self._context.term()

    def writable(self) -> bool:
        return self._socket is not None and bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def send(self, message: Message) -> bool:
        """False if it cannot go at once."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def send_chunk(self, chunk: Chunk) -> Tracker | None:
        """Send without copying the payload; the tracker tells when ZeroMQ is done with it. None: it cannot go now."""
        if self._socket is None:
            return None
        try:
            return self._socket.send_multipart(encode(chunk), zmq.NOBLOCK, copy=False, track=True)
        except zmq.Again:
            return None

    def receive(self) -> list[bytes] | None:
        """The frames of a message; None if there is none."""
        if self._socket is None:
            return None
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def wait(self, wake_fd: int, to_write: bool, seconds: float, other_fd: int | None = None) -> bool:
        """Sleep until `wake_fd`, `other_fd` or a message can be read, or (if `to_write`) one sent; whether `wake_fd` is
        it."""
        poller = zmq.Poller()
        poller.register(wake_fd, zmq.POLLIN)
        if other_fd is not None:
            poller.register(other_fd, zmq.POLLIN)
        if self._socket is not None:
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if to_write else 0))
        return wake_fd in dict(poller.poll(int(1000 * max(0.0, seconds)) + 1))
