"""What may be sent when: chunks, within the credit that the daemon grants and the places in ZeroMQ's queue."""

from __future__ import annotations

from rankd_client.link.dealer import Dealer
from rankd_client.outbox import Outbox
from rankd_client.wire import MIN_CHUNK_BYTES

STARVED_SECONDS = 30.0
"""Credit comes back as soon as a chunk is taken; after this long without any, the answer to a chunk was lost."""


class Flow:
    """The credit of one connection. `congested`: ZeroMQ's queue is full, and the socket will tell when it is not."""

    def __init__(self) -> None:
        self.credit_bytes = 0
        self.chunk_bytes = MIN_CHUNK_BYTES
        self.congested = False
        self._starved_since: float | None = None

    def begin(self, credit_bytes: int, chunk_bytes: int) -> None:
        """A new connection grants this much. Chunks are made small enough for it, where they may be."""
        self.credit_bytes = credit_bytes
        self.chunk_bytes = max(MIN_CHUNK_BYTES, min(chunk_bytes, credit_bytes))
        self.end()

    def end(self) -> None:
        self.congested, self._starved_since = False, None

    def earn(self, credit_bytes: int) -> None:
        if credit_bytes > 0:
            self.credit_bytes += credit_bytes
            self._starved_since = None

    def patience_ends(self) -> float:
        """When to give the connection up for want of credit, on the clock that pump() is given."""
        return float("inf") if self._starved_since is None else self._starved_since + STARVED_SECONDS

    def pump(self, outbox: Outbox, dealer: Dealer, now_seconds: float) -> None:
        """Send what is unsent, as far as it goes."""
        self.congested = False
        while (snapshot := outbox.next_unsent()) is not None:
            num_bytes = min(self.chunk_bytes, snapshot.num_bytes - snapshot.sent_bytes)
            starved = num_bytes > self.credit_bytes
            tracker = None if starved else dealer.send_chunk(snapshot.next_chunk(num_bytes))
            if tracker is None:
                outbox.put_back(snapshot)
                self.congested = not starved
                if starved and self._starved_since is None:
                    self._starved_since = now_seconds
                return
            self.credit_bytes -= num_bytes
            outbox.sent(snapshot, num_bytes, tracker)
        self._starved_since = None
