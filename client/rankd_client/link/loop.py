"""The background thread that talks to the daemon. It sleeps in one poll until a socket, the training thread or the next
deadline wakes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rankd_client.console import FaultLog, describe
from rankd_client.keys import Key
from rankd_client.link.conversation import RETRY_SECONDS, Conversation, OnAlert
from rankd_client.link.handshake import Handshake
from rankd_client.link.waker import Waker
from rankd_client.outbox import Outbox
from rankd_client.outletthread import OutletThread
from rankd_client.wire import PROTOCOL_VERSION, Hello, Plan

FIRST_ATTEMPT_SECONDS = 0.5
"""A close() right after the start gives the first attempt to connect this long."""

_BYE_SECONDS = 0.1
"""For the bye to be on its way, where all other time is up: a daemon that stands still reads it when it goes on."""

_RELEASE_POLL_SECONDS = 0.05
_FAULT_SECONDS = 0.1
"""After a fault of ours: one that comes again before the poll would otherwise keep a core busy."""

_GATHER_SECONDS = 0.025
"""A daemon answers each layer by itself, twice. Where nobody waits for the answers they are taken together: each time
that this thread wakes costs a training that its host bounds as much as taking several answers does. Alerts come as much
later."""

_ARRIVAL_POLL_SECONDS = 0.005
"""A GPU's copies take some milliseconds; this thread must not ask CUDA, only look at memory."""


class Link(OutletThread):
    """An outlet: what is pending is sent, and a bye, before it ends. All that it does happens on its own thread.

    `hello` has the version of the protocol that is needed at least, `newest` is the one that is tried first.
    """

    def __init__(
        self,
        address: str,
        hello: Hello,
        outbox: Outbox,
        on_alert: OnAlert,
        key: Key | None = None,
        newest: int = PROTOCOL_VERSION,
    ) -> None:
        super().__init__("rankd-link")
        self.address = address
        self._outbox = outbox
        self._waker = Waker()
        self._faults = FaultLog(address)
        handshake = Handshake(hello, newest)
        self._talk = Conversation(address, handshake, outbox, on_alert, key, self._faults, self._waker.wake)
        self._started_at = time.monotonic()

    # Any thread ----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._talk.state == "ready"

    @property
    def plan(self) -> Plan:
        return self._talk.plan

    @property
    def refused(self) -> dict[str, str]:
        """Layers that the daemon will not take while this connection lasts, with the code."""
        return self._talk.refused

    @property
    def num_refused(self) -> int:
        return self._talk.num_refused

    @property
    def num_dropped(self) -> int:
        """Refused for good."""
        return self._talk.num_refused

    @property
    def num_wire_errors(self) -> int:
        return self._talk.num_wire_errors

    @property
    def version(self) -> int:
        """Of the protocol, as spoken with the daemon that is there; 0 without one."""
        return self._talk.handshake.hello.version if self.connected else 0

    @property
    def path(self) -> str:
        """By which way snapshots go: "memfd", memory that the daemon reads itself, or "zeromq"."""
        return self._talk.lender.path

    @property
    def tell(self) -> Callable[[], Mapping[str, Any]]:
        """Called on the link's thread, for each heartbeat: what pushing costs."""
        return self._talk.tell

    @tell.setter
    def tell(self, tell: Callable[[], Mapping[str, Any]]) -> None:
        self._talk.tell = tell

    def wake(self) -> None:
        self._waker.wake()

    # The link's own thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished():
            try:
                self._turn()
            except Exception as error:  # ours, or ZeroMQ's: the training process must not hear of it but once
                self._faults.once(f"unexpected-{type(error).__name__}", f"on the connection: {describe(error)}")
                with suppress(Exception):
                    self._talk.close(RETRY_SECONDS)
                time.sleep(_FAULT_SECONDS)
        with suppress(Exception):
            self._outbox.take_back(self._talk.flow.unanswered)
            self._talk.end(max(_BYE_SECONDS, (self._stop_at or 0.0) - time.monotonic()))
        self._waker.close()

    def _turn(self) -> None:
        talk = self._talk
        talk.advance(time.monotonic())
        if self._finished():
            return
        seconds = self._next_deadline() - time.monotonic()
        woken = talk.dealer.wait(self._waker.fd, talk.awaits_writing, seconds, talk.lender.fd)
        if not woken and self._may_gather():
            woken = self._waker.wait(_GATHER_SECONDS)
        if woken:
            self._waker.clear()
        talk.receive()
        self._outbox.purge()

    def _may_gather(self) -> bool:
        """Whether nobody waits for an answer: nothing is left to send or to lend, nobody flushes, and for the next
        push as much memory is free as is lent."""
        outbox, talk = self._outbox, self._talk
        if not self.connected or self._stop_at is not None or talk.lender.is_asking:
            return False
        is_over = not outbox.num_unsent and not outbox.num_waiting
        return is_over and talk.flow.lent_bytes <= outbox.arena.free_bytes

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        if self._is_late():
            return True
        if self.connected:
            is_sent = self._outbox.num_unsent == 0
            all_taken = is_sent and not self._talk.flow.unanswered and not self._outbox.reports.under_way()
            return all_taken or time.monotonic() >= self._talk.patience_ends()
        return self._talk.state == "closed" or time.monotonic() >= self._started_at + FIRST_ATTEMPT_SECONDS

    def _next_deadline(self) -> float:
        deadlines = [self._talk.next_deadline()]
        if self._outbox.has_retired:
            deadlines.append(time.monotonic() + _RELEASE_POLL_SECONDS)
        if self._outbox.has_arriving:
            deadlines.append(time.monotonic() + _ARRIVAL_POLL_SECONDS)
        if self._stop_at is not None:
            deadlines += [self._stop_at, max(self._started_at + FIRST_ATTEMPT_SECONDS, time.monotonic() + 0.01)]
        return min(deadlines)
