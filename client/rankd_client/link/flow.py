"""What may be sent when: chunks, within the credit that the daemon grants and the places in ZeroMQ's queue; and which
of them are loans that have not ended yet."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from rankd_client.console import FaultLog, describe
from rankd_client.link.dealer import Dealer
from rankd_client.link.lender import Lender
from rankd_client.outbox import Outbox
from rankd_client.reports import Reports
from rankd_client.snapshot import Snapshot, Tracker
from rankd_client.text import escape
from rankd_client.wire import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, Lent

STARVED_SECONDS = 30.0
"""Credit comes back as soon as a chunk is taken; after this long without any, the answer to a chunk was lost."""

UNSENDABLE = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What making a message of an impossible snapshot raises; nothing of ZeroMQ's."""

Name = tuple[str, str, int]
"""(layer, role, step) of a snapshot"""


class Loan:
    """A tracker: `done` once the daemon does not read the memory any more."""

    __slots__ = ("done", "num_bytes")

    def __init__(self, num_bytes: int) -> None:
        self.done = False
        self.num_bytes = num_bytes


class Flow:
    """The credit of one connection. `congested`: ZeroMQ's queue is full, and the socket will tell when it is not.
    `one_by_one`: the daemon could not read something; until all is sent, nothing goes before what went was answered."""

    def __init__(self, faults: FaultLog) -> None:
        self.one_by_one = False
        self._faults = faults
        self.credit_bytes = 0
        self.chunk_bytes = MIN_CHUNK_BYTES
        """At most in a frame."""
        self.loan_bytes = MIN_CHUNK_BYTES
        """At most in a loan: nobody makes room for a frame, and each message costs."""
        self.congested = False
        self._starved_since: float | None = None
        self._under_way: deque[tuple[Name, Loan | None]] = deque()
        """All that costs credit and was not answered, in the order in which it went; None: in a frame."""
        self.lent_bytes = 0
        """Of the arena, at this moment."""

    def begin(self, credit_bytes: int, chunk_bytes: int) -> None:
        """A new connection grants this much. Chunks are made small enough for it, where they may be."""
        self.credit_bytes = credit_bytes
        self.chunk_bytes = max(MIN_CHUNK_BYTES, min(chunk_bytes, credit_bytes))
        self.loan_bytes = max(self.chunk_bytes, min(MAX_CHUNK_BYTES, credit_bytes))
        self.end()

    def end(self) -> None:
        """The connection is over, and (its lender saw to that) all loans with it."""
        self.congested, self._starved_since = False, None
        self.end_loans()
        self._under_way.clear()

    def end_loans(self) -> None:
        """To be called once the epoch was raised."""
        for _, loan in self._under_way:
            if loan is not None:
                loan.done = True
        self.lent_bytes = 0

    @property
    def unanswered(self) -> set[Name]:
        """What went, and nobody has said that he took it."""
        return {name for name, _ in self._under_way}

    def earn(self, credit_bytes: int, name: Name | None = None) -> None:
        """Credit came back. It is the answer to what went first of `name`, and to all before that, whose answers got
        lost: a daemon answers in the order in which it was sent to."""
        if credit_bytes <= 0:
            return
        self.credit_bytes += credit_bytes
        self._starved_since = None
        if name is None or not any(sent == name for sent, _ in self._under_way):
            return
        is_answered = False
        while not is_answered:
            sent, loan = self._under_way.popleft()
            is_answered = sent == name
            if loan is not None and not loan.done:
                loan.done = True
                self.lent_bytes -= loan.num_bytes

    def patience_ends(self) -> float:
        """When to give the connection up for want of credit, on the clock that pump() is given."""
        return float("inf") if self._starved_since is None else self._starved_since + STARVED_SECONDS

    def pump(self, outbox: Outbox, dealer: Dealer, lender: Lender, now_seconds: float) -> None:
        """Send what is unsent, as far as it goes."""
        self.congested = False
        while (snapshot := outbox.next_unsent()) is not None:
            block = lender.number_of(snapshot.region.block)
            most_bytes = self.chunk_bytes if block is None else self.loan_bytes
            num_bytes = min(most_bytes, snapshot.num_bytes - snapshot.sent_bytes)
            starved = num_bytes > self.credit_bytes or self._has_to_wait(outbox.reports)
            starved |= block is not None and self._is_too_much_lent(snapshot, outbox)
            try:
                tracker = None if starved else self._send(snapshot, num_bytes, dealer, block)
            except UNSENDABLE as error:
                self._give_up((snapshot.layer, snapshot.role, snapshot.step), outbox, error)
                continue
            if tracker is None:
                outbox.put_back(snapshot)
                self.congested = not starved
                if starved and self._starved_since is None:
                    self._starved_since = now_seconds
                return
            self.credit_bytes -= num_bytes
            outbox.sent(snapshot, num_bytes, tracker)
        self._starved_since = None
        self.one_by_one &= outbox.reports.num_unsent > 0 or self._has_to_wait(outbox.reports)

    def pump_reports(self, reports: Reports, dealer: Dealer, now_seconds: float) -> None:
        """The same of what was reported: small, and never in the way of a snapshot for long."""
        while (report := reports.next()) is not None:
            starved = len(report.body) > self.credit_bytes or self._has_to_wait(reports)
            if starved or not dealer.send(report.message()):
                self.congested |= not starved
                if starved and self._starved_since is None:
                    self._starved_since = now_seconds
                return
            self.credit_bytes -= len(report.body)
            reports.sent(report)

    def alone(self, reports: Reports) -> Name | None:
        """What went one by one, and was not answered."""
        under_way = [*(name for name, _ in self._under_way), *reports.under_way()]
        return under_way[0] if self.one_by_one and len(under_way) == 1 else None

    def _has_to_wait(self, reports: Reports) -> bool:
        return self.one_by_one and bool(self._under_way or reports.under_way())

    def _give_up(self, name: Name, outbox: Outbox, error: Exception) -> None:
        """No message can be made of it: it costs this snapshot, and no other."""
        outbox.give_up(*name)
        self._faults.once("unsendable", f"{escape(name[0], 200)} cannot be sent, and is dropped: {describe(error)}")

    def _is_too_much_lent(self, snapshot: Snapshot, outbox: Outbox) -> bool:
        """Half of the arena is never lent, but for one snapshot: while a daemon stands still, pushes go on in it."""
        is_begun, half_bytes = snapshot.sent_bytes > 0, outbox.arena.num_bytes // 2
        return not is_begun and self.lent_bytes > 0 and self.lent_bytes + snapshot.num_bytes > half_bytes

    def _send(self, snapshot: Snapshot, num_bytes: int, dealer: Dealer, block: int | None) -> Tracker | None:
        """The next bytes, lent where their memory is, in the block of that number; None: they cannot go now."""
        chunk = snapshot.next_chunk(num_bytes)
        name = (snapshot.layer, snapshot.role, snapshot.step)
        if block is None:
            tracker = dealer.send_chunk(chunk)
            if tracker is not None:
                self._under_way.append((name, None))
            return tracker
        at = snapshot.region.start + snapshot.sent_bytes
        if not dealer.send(Lent(replace(chunk, payload=b""), block, at, num_bytes)):
            return None
        loan = Loan(num_bytes)
        self.lent_bytes += num_bytes
        self._under_way.append((name, loan))
        return loan
