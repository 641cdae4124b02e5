"""Chunks whose payload is a client's own memory, one at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from rankd.lent.lenders import Lenders, Loan
from rankd_client.wire import Chunk, Lent


class Borrower:
    def __init__(self, lenders: Lenders, counters: Counter[str]) -> None:
        self._lenders = lenders
        self._counters = counters
        self._loan: Loan | None = None
        """Of the chunk that came last, where it is lent."""

    def borrow(self, token: str, lent: Lent) -> Chunk:
        """The chunk that `lent` speaks of, to be read until `end`; ends the loan before it. Raises WireError."""
        self.end()
        self._loan = self._lenders.borrow(token, lent)
        self._counters["num_borrowed_bytes"] += lent.num_bytes
        return replace(lent.chunk, payload=self._loan.view)

    def confirm(self) -> None:
        """After copying. Raises WireError where the copy may be torn."""
        if self._loan is not None:
            self._loan.confirm()

    def end(self) -> None:
        if self._loan is not None:
            self._loan.end()
            self._loan = None
