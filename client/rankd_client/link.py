"""The background thread that owns the socket to the daemon: connects, sends what the outbox holds, takes answers.

    closed → opening (a socket tries to connect) → hello (said, no answer yet) → ready

Whatever goes wrong ends in `closed` with a time to try again. The thread sleeps in one poll until a socket, the
training thread or the next deadline wakes it.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from rankd_client.endpoints import EndpointError, check_owner
from rankd_client.outbox import Outbox, Snapshot
from rankd_client.text import escape
from rankd_client.wire import (
    MIN_CHUNK_BYTES,
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Hello,
    Message,
    Plan,
    Refusal,
    Welcome,
    WireError,
    decode,
    encode,
)

SEND_HIGH_WATER = 8
"""Messages that ZeroMQ may hold for us: two chunks keep the pipe full, a few more save wake-ups with small layers; each
one pins a snapshot's memory while a daemon stands still."""

RECEIVE_HIGH_WATER = 1000
MAX_MESSAGE_BYTES = 1 << 20
"""A daemon sends headers and alerts; nobody has us reserve more for one frame."""

OPEN_SECONDS = 5.0
"""After this long without a connection the socket is opened anew: an ipc directory's owner is looked at again."""

HELLO_SECONDS = 3.0
"""How long a daemon has to answer a hello; doubled each time it does not."""

RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
SILENT_INTERVALS = 3
"""Heartbeats missed in a row after which a daemon counts as gone."""

FIRST_ATTEMPT_SECONDS = 0.5
"""A close() right after the start gives the first attempt to connect this long."""

LOG_SECONDS = 60.0
_RELEASE_POLL_SECONDS = 0.05
_RECEIVE_BATCH = 256
CLOSE_SECONDS = 2.0
"""At the interpreter's end, what close() has by default."""

_log = logging.getLogger("rankd_client")


class Link:
    """Start it once; `wake` it when the outbox has something; `stop` it. All else happens on its own thread."""

    def __init__(
        self,
        address: str,
        hello: Hello,
        outbox: Outbox,
        on_alert: Callable[[dict[str, Any]], None],
    ) -> None:
        self.address = address
        self.plan = Plan()
        self.num_wire_errors = 0
        self.num_refused = 0
        self.refused: dict[str, str] = {}
        """Layers of which the daemon refused a snapshot since the welcome, with the code."""
        self._hello = hello
        self._outbox = outbox
        self._on_alert = on_alert
        self._state = "new"  # as closed, but nothing was tried yet
        self._socket: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._deadline = 0.0  # of the state: when to try again, give up, or beat
        self._retry_seconds = RETRY_SECONDS
        self._hello_seconds = HELLO_SECONDS
        self._heartbeat_seconds = 1.0
        self._last_heard = 0.0
        self._credit_bytes = 0
        self._chunk_bytes = MIN_CHUNK_BYTES
        self._congested = False
        self._stop_at: float | None = None
        self._started_at = time.monotonic()
        self._said: set[str] = set()
        self._told_down = False
        self._told_at = -LOG_SECONDS
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="rankd-link", daemon=True)

    # Any thread ----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._state == "ready"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._thread.start()
        atexit.register(self._end)  # not a finalizer: a client that nobody refers to any more still has things to send

    def wake(self) -> None:
        with suppress(OSError):  # full: it is awake; closed: it has ended
            self._wake_write.send(b"\0")

    def stop(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Ask the thread to send what is pending, say bye and end, within `timeout_seconds`; do not wait for it."""
        if os.getpid() == self._pid and self._stop_at is None:
            self._stop_at = time.monotonic() + timeout_seconds
            self.wake()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end of a stopped thread. Nothing in a forked child, which has no such thread."""
        if os.getpid() == self._pid and self._thread.is_alive():
            self._thread.join(timeout_seconds)
            atexit.unregister(self._end)

    def _end(self) -> None:
        self.stop()
        self.join(CLOSE_SECONDS + 0.5)

    # The link's thread from here on --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished():
            try:
                self._turn()
            except Exception as error:  # ours, or ZeroMQ's: the training process must not hear of it but once
                self._say(f"unexpected-{type(error).__name__}", f"{type(error).__name__} on the connection: {error}")
                self._close(RETRY_SECONDS)
        with suppress(Exception):
            self._leave()
        self._wake_read.close()
        self._wake_write.close()

    def _turn(self) -> None:
        now = time.monotonic()
        self._advance(now)
        if self._state == "ready":
            self._send()
        if self._finished():
            return
        if self._wait():
            self._receive()
        self._outbox.purge()

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        now = time.monotonic()
        if now >= self._stop_at:
            return True
        if self._state == "ready":
            return self._outbox.num_unsent == 0
        return self._state == "closed" or now >= self._started_at + FIRST_ATTEMPT_SECONDS

    def _advance(self, now: float) -> None:
        """What time alone brings about."""
        if self._state == "opening" and self._writable():
            self._say_hello(now)
        if self._state == "ready" and now >= self._last_heard + SILENT_INTERVALS * self._heartbeat_seconds:
            self._down("the daemon is silent")
            self._close(0.0)
        if now < self._deadline:
            return
        if self._state in ("new", "closed"):
            self._open(now)
        elif self._state == "opening":
            self._down("no daemon is there yet")
            self._close(0.0)
        elif self._state == "hello":
            self._down("the daemon does not answer")
            self._hello_seconds = min(2 * self._hello_seconds, MAX_RETRY_SECONDS)
            self._close(0.0)
        else:
            self._deadline = now + self._heartbeat_seconds
            self._send_small(Heartbeat())

    def _open(self, now: float) -> None:
        self._state, self._deadline = "closed", now + RETRY_SECONDS
        try:
            check_owner(self.address)
        except EndpointError as error:
            self._say("owner", f"not connecting: {error}")
            return
        if self.address.startswith("ipc://") and not Path(self.address.removeprefix("ipc://")).exists():
            self._down("no daemon is there yet")
            return
        if self._context is None:
            self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.SNDHWM, SEND_HIGH_WATER),
            (zmq.RCVHWM, RECEIVE_HIGH_WATER),
            (zmq.IMMEDIATE, 1),  # nothing is queued for nobody
            (zmq.LINGER, 0),  # the interpreter ends when it wants to
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.IPV6, 1),
            (zmq.HEARTBEAT_IVL, 2000),
            (zmq.HEARTBEAT_TIMEOUT, 10000),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2000),
        ):
            self._socket.setsockopt(option, value)
        self._socket.connect(self.address)
        self._state, self._deadline = "opening", now + OPEN_SECONDS

    def _close(self, retry_seconds: float) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket, self._state, self._congested = None, "closed", False
        self._deadline = time.monotonic() + retry_seconds

    def _leave(self) -> None:
        """Say bye, and leave ZeroMQ the time that is left to put its messages on the way."""
        left = max(0.0, (self._stop_at or 0.0) - time.monotonic()) if self._state == "ready" else 0.0
        if self._state == "ready":
            self._send_small(Bye())
        if self._socket is not None:
            self._socket.close(linger=int(1000 * left))
        if self._context is not None:
            self._context.term()
        self._socket, self._state = None, "closed"

    def _say_hello(self, now: float) -> None:
        if self._send_small(self._hello):
            self._state, self._deadline = "hello", now + self._hello_seconds

    def _writable(self) -> bool:
        return self._socket is not None and bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def _wait(self) -> bool:
        """Sleep until there is something to do; whether the daemon sent something."""
        poller = zmq.Poller()
        poller.register(self._wake_read.fileno(), zmq.POLLIN)
        if self._socket is not None:
            wants_to_write = self._state == "opening" or self._congested
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if wants_to_write else 0))
        sleep_seconds = max(0.0, self._next_deadline() - time.monotonic())
        events = dict(poller.poll(int(1000 * sleep_seconds) + 1))
        if self._wake_read.fileno() in events:
            with suppress(OSError):
                self._wake_read.recv(4096)
        return bool(events.get(self._socket, 0) & zmq.POLLIN) if self._socket is not None else False

    def _next_deadline(self) -> float:
        deadlines = [self._deadline]
        if self._state == "ready":
            deadlines.append(self._last_heard + SILENT_INTERVALS * self._heartbeat_seconds)
        if self._outbox.has_retired:
            deadlines.append(time.monotonic() + _RELEASE_POLL_SECONDS)
        if self._stop_at is not None:
            deadlines += [self._stop_at, max(self._started_at + FIRST_ATTEMPT_SECONDS, time.monotonic() + 0.01)]
        return min(deadlines)

    # Sending -------------------------------------------------------------------------------------------------------

    def _send_small(self, message: Message) -> bool:
        try:
            assert self._socket is not None
            self._socket.send_multipart(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _send(self) -> None:
        """Chunks, while there are unsent snapshots, credit for them, and a place in ZeroMQ's queue."""
        self._congested = False
        while (snapshot := self._outbox.next_unsent()) is not None:
            num_bytes = min(self._chunk_bytes, snapshot.num_bytes - snapshot.sent_bytes)
            self._congested = num_bytes <= self._credit_bytes and not self._writable()
            if num_bytes > self._credit_bytes or self._congested:
                self._outbox.put_back(snapshot)
                return
            self._send_chunk(snapshot, num_bytes)

    def _send_chunk(self, snapshot: Snapshot, num_bytes: int) -> None:
        start = snapshot.sent_bytes
        chunk = Chunk(
            layer=snapshot.layer,
            step=snapshot.step,
            role=snapshot.role,
            dtype=snapshot.dtype,
            source_dtype=snapshot.source_dtype,
            shape=snapshot.shape,
            total_bytes=snapshot.num_bytes,
            offset=start,
            payload=snapshot.region.view[start : start + num_bytes],
        )
        assert self._socket is not None
        tracker = self._socket.send_multipart(encode(chunk), zmq.NOBLOCK, copy=False, track=True)
        assert tracker is not None  # track=True
        self._credit_bytes -= num_bytes
        self._outbox.sent(snapshot, num_bytes, tracker)

    # Receiving -----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(_RECEIVE_BATCH):
            if self._socket is None:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames)
            except WireError as error:
                self.num_wire_errors += 1
                self._say("wire", f"{self.address} sent what is no message of this protocol ({error}); ignored")
                continue
            self._last_heard = time.monotonic()
            self._handle(message)

    def _handle(self, message: Message) -> None:
        match message:
            case Welcome() if self._state == "hello":
                self._welcome(message)
            case Plan():
                self.plan = message
            case Ack():
                self._credit_bytes += message.credit_bytes
                if message.state != "received":
                    self._retry_seconds = RETRY_SECONDS
                    self._outbox.settle(message.layer, message.role, message.step)
            case Refusal():
                self._refused(message)
            case AlertNotice():
                self._on_alert(dict(message.alert))
            case Bye():
                self._down("the daemon has ended")
                self._close(RETRY_SECONDS)
            case Hello() | Chunk():
                self.num_wire_errors += 1

    def _welcome(self, welcome: Welcome) -> None:
        self._state, self._hello_seconds = "ready", HELLO_SECONDS
        self.plan = welcome.plan
        self._heartbeat_seconds = welcome.heartbeat_seconds
        self._deadline = time.monotonic() + welcome.heartbeat_seconds
        self._credit_bytes = welcome.credit_bytes
        self._chunk_bytes = max(MIN_CHUNK_BYTES, min(welcome.chunk_bytes, welcome.credit_bytes))
        self.refused = {}
        self._outbox.rewind()
        if self._told_down:
            self._told_down = False
            _log.warning("rankd: connected to %s", self.address)

    def _refused(self, refusal: Refusal) -> None:
        self._credit_bytes += refusal.credit_bytes
        if refusal.code == "no_hello":
            if self._state == "ready":  # one that came back under the same address; several of ours may be under way
                self._say_hello(time.monotonic())
            return
        self.num_refused += 1
        why = f"{refusal.code}: {escape(refusal.detail, 200)}"
        if refusal.layer is not None and refusal.step is not None:
            self.refused[refusal.layer] = refusal.code
            self._outbox.settle(refusal.layer, refusal.role, refusal.step)
            self._say(f"refused-{refusal.code}", f"the daemon refused {escape(refusal.layer, 200)} ({why})")
            return
        self._down(f"the daemon refused the connection ({why})")
        self._close(self._retry_seconds)
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _down(self, why: str) -> None:
        """One log line when the daemon is gone; a daemon that comes and goes does not fill the log."""
        now = time.monotonic()
        if not self._told_down and now >= self._told_at + LOG_SECONDS:
            self._told_down, self._told_at = True, now
            _log.warning("rankd: %s: %s; training goes on, trying again", self.address, escape(why))

    def _say(self, topic: str, line: str) -> None:
        """One log line for each kind of fault."""
        if topic not in self._said:
            self._said.add(topic)
            _log.warning("rankd: %s", escape(line, 600))
