"""Who is let in: answers libzmq's questions (ZAP, RFC 27) about the keys of those who knock."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.utils import z85

from rankd.auth.grants import Grant

log = logging.getLogger("rankd.auth")

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"

REFUSED = b"300"
"""libzmq says nothing and hangs up when the time for the handshake is over. After a 400 its client would never come
again, not even when its key is authorized."""

PAUSE_SECONDS = 0.1
"""After a fault of ours or of libzmq: one that stays must not fill a disk either."""

MAX_TOLD = 256
"""Refused keys that are remembered, so that each is told of once."""
LOG_LINES, LOG_SECONDS = 10, 60.0
"""Lines about refused keys in so many seconds: who makes a new key for each attempt must not fill a disk."""


class ZapHandler:
    """On a thread of its own, so that a daemon busy with measuring lets nobody wait; it ends with the context.

    `find_key` gives the grant of a public key (Z85), or None. It is called on that thread.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        domain: bytes,
        find_key: Callable[[str], Grant | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domain = domain
        self._find_key = find_key
        self._denials = DenialLog(clock)
        # A context of its own over the same sockets: destroying the other does not close ours under our thread.
        plain: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
        self._socket = plain.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="rankd-zap", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end, which comes with the context's; whether it came."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._socket.closed:
            try:
                self._answer(self._socket.recv_multipart())
            except zmq.ContextTerminated:
                self._socket.close()
            except Exception:  # nobody gets in by it, and the next one is answered
                log.exception("a question about a key could not be answered")
                time.sleep(PAUSE_SECONDS)

    def _answer(self, frames: list[bytes]) -> None:
        """[peer, empty, version, request id, domain, address, routing id, mechanism, credentials…]"""
        if len(frames) < 4 or frames[1] != b"":
            log.error("a question about a key has %d frames; not answered", len(frames))
            return
        envelope, (version, request_id, *question) = frames[:2], frames[2:]
        status, text, user_id = b"500", b"malformed", b""
        if version == VERSION and len(question) >= 4:
            domain, address, _, mechanism, *credentials = question
            grant = self._decide(domain, mechanism, credentials, address)
            status, text, user_id = (REFUSED, b"key", b"") if grant is None else (b"200", b"OK", grant.user_id.encode())
        self._socket.send_multipart([*envelope, VERSION, request_id, status, text, user_id, b""])

    def _decide(self, domain: bytes, mechanism: bytes, credentials: Sequence[bytes], address: bytes) -> Grant | None:
        if domain != self._domain or mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32:
            self._denials.add("none", address)
            return None
        public_key = z85.encode(credentials[0]).decode()
        grant = self._find_key(public_key)
        if grant is None:
            self._denials.add(public_key, address)
        return grant


class DenialLog:
    """One line for each key that was refused, a few of them a minute, and how many were not told of. Of who comes by
    the gate libzmq knows no address, but `localhost:` and the ids of our own process; the gate's log has it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: OrderedDict[str, None] = OrderedDict()
        self._began = clock()
        self._num_lines = self._num_held = 0

    def add(self, public_key: str, address: bytes) -> None:
        if public_key in self._told:
            self._told.move_to_end(public_key)
            return
        now = self._clock()
        if now >= self._began + LOG_SECONDS:
            self._began, self._num_lines = now, 0
        if self._num_lines >= LOG_LINES:
            self._num_held += 1
            return
        self._num_lines += 1
        self._told[public_key] = None
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)
        held, self._num_held = self._num_held, 0
        more = f"; {held} refusals before it were not told of" if held else ""
        where = "" if address.startswith(b"localhost:") else f" from {address[:100].decode('ascii', 'replace')!a}"
        log.warning("refused the key %s%s%s", public_key, where, more)
