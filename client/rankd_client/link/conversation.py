"""The client's side of a push connection, again and again: connects, says hello, sends what the outbox holds, takes
answers, and may have the daemon read the arena instead.

    closed → opening (a socket tries to connect) → hello (said, no answer yet) → ready

Whatever goes wrong ends in `closed` with a time to try again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rankd_client.console import FaultLog, inform
from rankd_client.endpoints import EndpointError
from rankd_client.greeting import Inquiry
from rankd_client.keys import Key
from rankd_client.link.dealer import Dealer
from rankd_client.link.flow import Flow
from rankd_client.link.handshake import Handshake
from rankd_client.link.lender import Lender
from rankd_client.link.refusals import LASTING, LOANS_ENDED, MAX_REFUSED, UNREADABLE
from rankd_client.naming import label_of
from rankd_client.outbox import Outbox
from rankd_client.text import escape
from rankd_client.wire import (
    LOCAL_VERSION,
    Ack,
    AlertNotice,
    Bye,
    Heartbeat,
    Message,
    Plan,
    Refusal,
    Welcome,
    WireError,
    decode,
)

OPEN_SECONDS = 5.0
"""After this long without a connection the socket is opened anew: an ipc directory's owner is looked at again."""

HELLO_SECONDS = 3.0
"""How long a daemon has to answer a hello; doubled each time it does not."""

RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
SILENT_INTERVALS = 3
"""Heartbeats missed in a row after which a daemon counts as gone."""

_RECEIVE_BATCH = 256
OnAlert = Callable[[dict[str, Any]], None]


class Conversation:
    """Of one link, on its thread. `wake` is for a thread that looks into why nobody lets us in."""

    def __init__(
        self,
        address: str,
        handshake: Handshake,
        outbox: Outbox,
        on_alert: OnAlert,
        key: Key | None,
        faults: FaultLog,
        wake: Callable[[], None],
    ) -> None:
        self.address = address
        self.handshake = handshake
        self.plan = Plan()
        self.num_wire_errors = self.num_refused = 0
        self.refused: dict[str, str] = {}
        """Layers that the daemon will not take while this connection lasts, with the code."""
        self.tell: Callable[[], Mapping[str, Any]] = dict
        """For each heartbeat: what pushing costs."""
        self.state = "new"  # as closed, but nothing was tried yet
        self.dealer = Dealer(address, key)
        self.flow = Flow(faults)
        self.lender = Lender(outbox.arena, handshake.hello.session)
        self.hello_seconds = HELLO_SECONDS
        self.retry_seconds = RETRY_SECONDS
        self._outbox = outbox
        self._on_alert = on_alert
        self._faults = faults
        self._inquiry = Inquiry(key, faults, wake)
        self._deadline = 0.0  # of the state: when to try again, give up, or beat
        self._heartbeat_seconds = 1.0
        self._last_heard = 0.0
        self._told_path = ""
        self._is_recovering = False
        """Loans ended unheard, and another hello is said: what is refused meanwhile was of them."""

    @property
    def awaits_writing(self) -> bool:
        """Whether the socket is to be polled for that too."""
        return self.state == "opening" or self.flow.congested

    def advance(self, now: float) -> None:
        """What time alone brings about, and what can be sent."""
        self._faults.look()
        if self.state == "opening" and self.dealer.writable():
            self._say_hello(now)
        if self.state == "ready" and now >= self.patience_ends():
            self._faults.down("the daemon is silent")
            self.close(0.0)
        if now >= self._deadline:
            self._time_is_up(now)
        if self.state == "ready":
            self._lend(now)
        if self.state == "ready":
            self.flow.pump(self._outbox, self.dealer, self.lender, now)
            self._report(now)

    def _report(self, now: float) -> None:
        if self.handshake.hello.version >= LOCAL_VERSION:
            self.flow.pump_reports(self._outbox.reports, self.dealer, now)
        elif self._outbox.reports.num_unsent:
            self._faults.once("reports", f"{self.address} is older than push_measurements: those are dropped")
            self._outbox.reports.give_up()

    def receive(self) -> None:
        """Take what was answered, a good many of them at most."""
        for _ in range(_RECEIVE_BATCH):
            self._outbox.right_of_way.give()
            frames = self.dealer.receive()
            if frames is None:
                break
            try:
                message = decode(frames)
            except WireError as error:
                self.num_wire_errors += 1
                self._faults.once("wire", f"{self.address} sent what is no message of this protocol ({error}); ignored")
                continue
            self._last_heard = time.monotonic()
            self._handle(message)
        if self.state != "ready":
            self._inquiry.tell()

    def next_deadline(self) -> float:
        if self.state != "ready":
            return self._deadline
        return min(self._deadline, self.patience_ends(), self.lender.deadline())

    def close(self, retry_seconds: float) -> None:
        self.dealer.close()
        self.lender.forget()
        self.flow.end()
        self.state, self._is_recovering = "closed", False
        self._deadline = time.monotonic() + retry_seconds

    def end(self, linger_seconds: float) -> None:
        """Say bye, and leave ZeroMQ so much time to put its messages on the way."""
        if self.state == "ready":
            self.dealer.send(Bye())
        else:
            linger_seconds = 0.0
        self.state = "closed"
        self.dealer.end(linger_seconds)
        self.lender.forget()

    def _time_is_up(self, now: float) -> None:
        if self.state in ("new", "closed"):
            self._open(now)
        elif self.state == "opening":
            self._inquiry.start(self.dealer.located)
            self.close(0.0)
        elif self.state == "hello":
            self._faults.down("the daemon does not answer")
            self.hello_seconds = min(2 * self.hello_seconds, MAX_RETRY_SECONDS)
            self.close(0.0)
        else:
            self._deadline = now + self._heartbeat_seconds
            self.dealer.send(Heartbeat(self.tell()))

    def _open(self, now: float) -> None:
        self.state, self._deadline = "closed", now + RETRY_SECONDS
        try:
            if self.dealer.open():
                self.handshake.begin()
                self.state, self._deadline = "opening", now + OPEN_SECONDS
            else:
                self._faults.down("no daemon is there yet")
        except EndpointError as error:
            self._faults.once("owner", f"not connecting: {error}")

    def _say_hello(self, now: float) -> bool:
        if is_said := self.dealer.send(self.handshake.hello):
            self.state, self._deadline = "hello", now + self.hello_seconds
        return is_said

    def _greet_again(self, now: float) -> None:
        """On this connection; on another where ZeroMQ's queue has no room, or nothing would ever set things right."""
        if not self._say_hello(now):
            self.close(0.0)

    def _lend(self, now: float) -> None:
        if self.lender.advance(now):
            was_missed = self.flow.lent_bytes > 0
            self.flow.end_loans()
            if was_missed:  # their answers may never come; most often because the daemon is gone
                self.close(0.0)
                return
        if self.lender.path != self._told_path and not self.lender.is_asking:
            self._told_path = self.lender.path
            why = f" ({self.lender.why})" if self.lender.why else ""
            inform(f"{self.address}: snapshots go by {self._told_path}{why}")

    def _loans_ended(self, now: float) -> None:
        """The epoch is raised. Another hello sets credit and snapshots right: what is unsettled goes again, framed."""
        self.flow.end_loans()
        self._is_recovering = True
        self._greet_again(now)

    def patience_ends(self) -> float:
        """When a daemon counts as gone: it says nothing, or its answers, which it sends without waiting, got lost."""
        return min(self._last_heard + SILENT_INTERVALS * self._heartbeat_seconds, self.flow.patience_ends())

    # Answers -------------------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        match message:
            case Welcome() if self.state == "hello" and message.version == self.handshake.hello.version:
                self._welcome(message)
            case Plan():
                self.plan = message
            case Ack():
                name = (message.layer, message.role, message.step)
                was_reported = message.state == "received" and self._outbox.reports.received(name)
                self.flow.earn(message.credit_bytes, None if was_reported else name)
                if message.state != "received":
                    self.retry_seconds = RETRY_SECONDS
                    self._outbox.settle(message.layer, message.role, message.step, message.state)
            case Refusal():
                self._refused(message)
            case AlertNotice():
                self._on_alert(dict(message.alert))
            case Bye():
                self._faults.down("the daemon has ended")
                self.close(RETRY_SECONDS)
            case Heartbeat() | Welcome():
                pass
            case _:
                self.num_wire_errors += 1

    def _welcome(self, welcome: Welcome) -> None:
        self.state, self.hello_seconds, self._is_recovering = "ready", HELLO_SECONDS, False
        self.plan = welcome.plan
        self._heartbeat_seconds = welcome.heartbeat_seconds
        self._deadline = time.monotonic() + welcome.heartbeat_seconds
        self.lender.begin(self.dealer.located, welcome)
        self.flow.begin(welcome.credit_bytes, welcome.chunk_bytes)
        self.refused = {}
        self._outbox.rewind()
        self._faults.up()

    def _refused(self, refusal: Refusal) -> None:
        code, now = refusal.code, time.monotonic()
        if refusal.layer is not None and refusal.step is not None:
            name = (refusal.layer, refusal.role, refusal.step)
            self.flow.earn(refusal.credit_bytes, None if self._outbox.reports.received(name) else name)
        if code == "no_hello":
            if self.state == "ready":  # one that came back under the same address; several of ours may be under way
                self.handshake.begin()
                self._greet_again(now)
        elif code in LOANS_ENDED:
            if self.state == "ready":
                self.lender.give_up(now, f"{code}: {refusal.detail}")
                self._loans_ended(now)
        elif code == "unknown_version" and self.state == "hello" and self.handshake.fall_back():
            self._greet_again(now)
        elif refusal.layer is not None and refusal.step is not None:
            if not self._is_recovering:
                self._drop(refusal.layer, refusal.role, refusal.step, refusal)
        else:
            self.num_refused += 1
            if code in UNREADABLE and self.state == "ready":
                self._find_unreadable(refusal)
            advice = self.handshake.advice if code == "unknown_version" else ""
            self._faults.refused(code, f"the daemon refused the connection ({self._why(refusal)}{advice})")
            self.close(self.retry_seconds)
            self.retry_seconds = min(2 * self.retry_seconds, MAX_RETRY_SECONDS)

    def _find_unreadable(self, refusal: Refusal) -> None:
        """Sent again one by one, it shows itself, and is dropped: else it would be refused and sent again for ever."""
        found = self.flow.alone(self._outbox.reports)
        self.flow.one_by_one = found is None
        if found is not None:
            self._outbox.settle(*found, refusal.code)
            self._faults.once("unreadable", f"{escape(found[0], 200)} is dropped: {self._why(refusal)}")

    def _drop(self, layer: str, role: str, step: int, refusal: Refusal) -> None:
        self.num_refused += 1
        if refusal.code in LASTING:
            self.refused[label_of(layer, role)] = refusal.code
            if len(self.refused) > MAX_REFUSED:
                del self.refused[next(iter(self.refused))]
        self._outbox.settle(layer, role, step, refusal.code)
        self._faults.once(f"refused-{refusal.code}", f"the daemon refused {escape(layer, 200)} ({self._why(refusal)})")

    @staticmethod
    def _why(refusal: Refusal) -> str:
        return f"{refusal.code}: {escape(refusal.detail, 200)}"
