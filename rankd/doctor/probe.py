"""One ZeroMQ socket that is watched while it connects, so that silence can be told from a closed door."""

from __future__ import annotations

import time
from types import TracebackType

import zmq
from zmq.utils.monitor import recv_monitor_message

from rankd_client.keys import Key, needs_key

WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
FAILED = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
MAX_MESSAGE_BYTES = 8 << 20


class Probe:
    """A socket of `kind`, connected to `address`, with a key if there is one; for a `with` block."""

    def __init__(self, kind: int, address: str, key: Key | None, topic: bytes | None = None) -> None:
        self.address = address
        self.has_key = key is not None and needs_key(address)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        for option, value in ((zmq.LINGER, 0), (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES), (zmq.IPV6, int("[" in address))):
            self._socket.setsockopt(option, value)
        if topic is not None:
            self._socket.subscribe(topic)
        else:
            self._socket.setsockopt(zmq.IMMEDIATE, 1)
        if key is not None:
            key.apply(self._socket, address)
        self._monitor = self._socket.get_monitor_socket(WATCHED)
        self._seen: set[int] = set()
        self._socket.connect(address)

    def ask(self, frames: list[bytes], seconds: float) -> tuple[list[bytes] | None, float]:
        """Send `frames`; the next message, and how many seconds it took to come. None: nobody was there, or none came,
        within `seconds` each."""
        if not self._socket.poll(int(1000 * seconds), zmq.POLLOUT):
            return None, seconds
        began = time.monotonic()
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        return self.hear(seconds), time.monotonic() - began

    def hear(self, seconds: float) -> list[bytes] | None:
        if self._socket.poll(int(1000 * seconds)):
            return self._socket.recv_multipart(zmq.NOBLOCK)
        return None

    def silence(self) -> tuple[str, str]:
        """Why nothing came, and what to do about it."""
        while self._monitor.poll(0):
            self._seen.add(int(recv_monitor_message(self._monitor)["event"]))
        if zmq.EVENT_HANDSHAKE_SUCCEEDED in self._seen:
            return "connected, but no answer", "the daemon hangs, or is another program: look at its log"
        if zmq.EVENT_HANDSHAKE_FAILED_AUTH in self._seen or (self.has_key and self._seen.intersection(FAILED)):
            return "the daemon refuses this key", "authorize it: `rankd keys authorize`, or name another with --key"
        if zmq.EVENT_CONNECTED in self._seen:
            if self.has_key:
                advice = "it is for another daemon, or was revoked, or this one asks for none, or has no files left"
                return "no answer to this key", advice
            if not needs_key(self.address):
                return "taken in by nobody", "the daemon hangs, or has no more files to open: look at its log"
            advice = "name a key that it knows: --key FILE or RANKD_KEY; or it has no more files to open: see its log"
            return "no answer to a peer without a key", advice
        return "nobody listens there", "start one with `rankd serve`, or name another with --url"

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._context.destroy(linger=0)
