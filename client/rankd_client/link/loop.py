"""The background thread that owns the socket to the daemon: connects, sends what the outbox holds, takes answers.

    closed → opening (a socket tries to connect) → hello (said, no answer yet) → ready

Whatever goes wrong ends in `closed` with a time to try again. The thread sleeps in one poll until a socket, the
training thread or the next deadline wakes it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rankd_client.console import FaultLog, describe
from rankd_client.endpoints import EndpointError
from rankd_client.greeting import Inquiry
from rankd_client.keys import Key
from rankd_client.link.dealer import Dealer
from rankd_client.link.flow import Flow
from rankd_client.link.living import CLOSE_SECONDS, living
from rankd_client.naming import label_of
from rankd_client.outbox import Outbox
from rankd_client.text import escape
from rankd_client.wire import (
    PROTOCOL_VERSION,
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
)

LASTING = frozenset({"layer_too_large", "too_many_layers"})
"""Codes with which the same layer would be refused again: it is not copied any more until the next welcome."""

TOO_OLD = 'it is older than copies with scales: update it, or push with dtype="bfloat16"'

OPEN_SECONDS = 5.0
"""After this long without a connection the socket is opened anew: an ipc directory's owner is looked at again."""

HELLO_SECONDS = 3.0
"""How long a daemon has to answer a hello; doubled each time it does not."""

RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
SILENT_INTERVALS = 3
"""Heartbeats missed in a row after which a daemon counts as gone."""

FIRST_ATTEMPT_SECONDS = 0.5
"""A close() right after the start gives the first attempt to connect this long."""

_RELEASE_POLL_SECONDS = 0.05
_ARRIVAL_POLL_SECONDS = 0.005
"""A GPU's copies take some milliseconds; this thread must not ask CUDA, only look at memory."""

_RECEIVE_BATCH = 256
OnAlert = Callable[[dict[str, Any]], None]


class Link:
    """Start it once; `wake` it when the outbox has something; `stop` it. All else happens on its own thread."""

    def __init__(self, address: str, hello: Hello, outbox: Outbox, on_alert: OnAlert, key: Key | None = None) -> None:
        self.address = address
        self.plan = Plan()
        self.num_wire_errors = 0
        self.num_refused = 0
        self.refused: dict[str, str] = {}
        """Layers that the daemon will not take while this connection lasts, with the code."""
        self.tell: Callable[[], Mapping[str, Any]] = dict
        """For each heartbeat: what pushing costs."""
        self._hello = hello
        self._outbox = outbox
        self._on_alert = on_alert
        self._state = "new"  # as closed, but nothing was tried yet
        self._dealer = Dealer(address, key)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._deadline = 0.0  # of the state: when to try again, give up, or beat
        self._retry_seconds = RETRY_SECONDS
        self._hello_seconds = HELLO_SECONDS
        self._heartbeat_seconds = 1.0
        self._last_heard = 0.0
        self._flow = Flow()
        self._stop_at: float | None = None
        self._started_at = time.monotonic()
        self._faults = FaultLog(address)
        self._inquiry = Inquiry(key, self._faults, self.wake)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="rankd-link", daemon=True)

    # Any thread ----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._state == "ready"

    def start(self) -> None:
        self._thread.start()
        living.add(self)

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
            living.discard(self)  # whoever waited for it once does not have to again

    # The link's own thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished():
            try:
                self._turn()
            except Exception as error:  # ours, or ZeroMQ's: the training process must not hear of it but once
                self._faults.once(f"unexpected-{type(error).__name__}", f"on the connection: {describe(error)}")
                self._close(RETRY_SECONDS)
        with suppress(Exception):
            self._leave()
        self._wake_read.close()
        self._wake_write.close()
        living.discard(self)

    def _turn(self) -> None:
        now = time.monotonic()
        self._advance(now)
        if self._state == "ready":
            self._flow.pump(self._outbox, self._dealer, now)
        if self._finished():
            return
        to_write = self._state == "opening" or self._flow.congested
        if self._dealer.wait(self._wake_read.fileno(), to_write, self._next_deadline() - time.monotonic()):
            with suppress(OSError):
                self._wake_read.recv(4096)
        self._receive()
        if self._state != "ready":
            self._inquiry.tell()
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
        if self._state == "opening" and self._dealer.writable():
            self._say_hello(now)
        if self._state == "ready" and now >= self._patience_ends():
            self._faults.down("the daemon is silent")
            self._close(0.0)
        if now < self._deadline:
            return
        if self._state in ("new", "closed"):
            self._open(now)
        elif self._state == "opening":
            self._inquiry.start(self._dealer.located)
            self._close(0.0)
        elif self._state == "hello":
            self._faults.down("the daemon does not answer")
            self._hello_seconds = min(2 * self._hello_seconds, MAX_RETRY_SECONDS)
            self._close(0.0)
        else:
            self._deadline = now + self._heartbeat_seconds
            self._dealer.send(Heartbeat(self.tell()))

    def _open(self, now: float) -> None:
        self._state, self._deadline = "closed", now + RETRY_SECONDS
        try:
            if self._dealer.open():
                self._state, self._deadline = "opening", now + OPEN_SECONDS
            else:
                self._faults.down("no daemon is there yet")
        except EndpointError as error:
            self._faults.once("owner", f"not connecting: {error}")

    def _close(self, retry_seconds: float) -> None:
        self._dealer.close()
        self._flow.end()
        self._state = "closed"
        self._deadline = time.monotonic() + retry_seconds

    def _leave(self) -> None:
        """Say bye, and leave ZeroMQ the time that is left to put its messages on the way."""
        left = 0.0
        if self._state == "ready" and self._stop_at is not None:
            self._dealer.send(Bye())
            left = max(0.0, self._stop_at - time.monotonic())
        self._state = "closed"
        self._dealer.end(left)

    def _say_hello(self, now: float) -> None:
        if self._dealer.send(self._hello):
            self._state, self._deadline = "hello", now + self._hello_seconds

    def _patience_ends(self) -> float:
        """When a daemon counts as gone: it says nothing, or its answers, which it sends without waiting, got lost."""
        return min(self._last_heard + SILENT_INTERVALS * self._heartbeat_seconds, self._flow.patience_ends())

    def _next_deadline(self) -> float:
        deadlines = [self._deadline]
        if self._state == "ready":
            deadlines.append(self._patience_ends())
        if self._outbox.has_retired:
            deadlines.append(time.monotonic() + _RELEASE_POLL_SECONDS)
        if self._outbox.has_arriving:
            deadlines.append(time.monotonic() + _ARRIVAL_POLL_SECONDS)
        if self._stop_at is not None:
            deadlines += [self._stop_at, max(self._started_at + FIRST_ATTEMPT_SECONDS, time.monotonic() + 0.01)]
        return min(deadlines)

    # Receiving -----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(_RECEIVE_BATCH):
            frames = self._dealer.receive()
            if frames is None:
                return
            try:
                message = decode(frames)
            except WireError as error:
                self.num_wire_errors += 1
                self._faults.once("wire", f"{self.address} sent what is no message of this protocol ({error}); ignored")
                continue
            self._last_heard = time.monotonic()
            self._handle(message)

    def _handle(self, message: Message) -> None:
        match message:
            case Welcome() if self._state == "hello" and message.version == self._hello.version:
                self._welcome(message)
            case Plan():
                self.plan = message
            case Ack():
                self._flow.earn(message.credit_bytes)
                if message.state != "received":
                    self._retry_seconds = RETRY_SECONDS
                    self._outbox.settle(message.layer, message.role, message.step, message.state)
            case Refusal():
                self._refused(message)
            case AlertNotice():
                self._on_alert(dict(message.alert))
            case Bye():
                self._faults.down("the daemon has ended")
                self._close(RETRY_SECONDS)
            case Hello() | Chunk():
                self.num_wire_errors += 1

    def _welcome(self, welcome: Welcome) -> None:
        self._state, self._hello_seconds = "ready", HELLO_SECONDS
        self.plan = welcome.plan
        self._heartbeat_seconds = welcome.heartbeat_seconds
        self._deadline = time.monotonic() + welcome.heartbeat_seconds
        self._flow.begin(welcome.credit_bytes, welcome.chunk_bytes)
        self.refused = {}
        self._outbox.rewind()
        self._faults.up()

    def _refused(self, refusal: Refusal) -> None:
        self._flow.earn(refusal.credit_bytes)
        if refusal.code == "no_hello":
            if self._state == "ready":  # one that came back under the same address; several of ours may be under way
                self._say_hello(time.monotonic())
            return
        self.num_refused += 1
        why = f"{refusal.code}: {escape(refusal.detail, 200)}"
        if refusal.code == "unknown_version" and self._hello.version > PROTOCOL_VERSION:
            why += f"; {TOO_OLD}"
        if refusal.layer is not None and refusal.step is not None:
            if refusal.code in LASTING:
                self.refused[label_of(refusal.layer, refusal.role)] = refusal.code
            self._outbox.settle(refusal.layer, refusal.role, refusal.step, refusal.code)
            self._faults.once(f"refused-{refusal.code}", f"the daemon refused {escape(refusal.layer, 200)} ({why})")
            return
        self._faults.refused(refusal.code, f"the daemon refused the connection ({why})")
        self._close(self._retry_seconds)
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
