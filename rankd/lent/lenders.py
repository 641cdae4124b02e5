"""Who lends what. Entered by the push connection's token, filled by the arena's, read for each loan."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rankd.config import Limits
from rankd.lent.blocks import Block, map_block
from rankd_client.wire import Lend, Lent, WireError


@dataclass(slots=True, eq=False)
class Lender:
    """A greeted client of version 3. `close` ends its arena connection; None while it has none."""

    session: bytes
    blocks: list[Block] = field(default_factory=list)
    close: Callable[[], None] | None = None

    @property
    def num_bytes(self) -> int:
        return sum(len(block.view) for block in self.blocks)


@dataclass(slots=True)
class Loan:
    """Bytes that may be copied from `view` until `end`; whether they are whole, `confirm` knows afterwards."""

    view: memoryview
    block: Block

    def confirm(self) -> None:
        """After copying. Raises WireError where the client has ended the loan meanwhile."""
        if not self.block.is_unchanged():
            raise WireError("loan_ended", "the client has taken its memory back; what was copied may be torn")

    def end(self) -> None:
        self.view.release()


class Lenders:
    """`socket_name`: of the arena socket, in the push socket's directory; "": there is none, and nobody is invited."""

    def __init__(self, limits: Limits, counters: Counter[str], socket_name: str = "") -> None:
        self.socket_name = socket_name
        self._limits = limits
        self._counters = counters
        self._by_token: dict[str, Lender] = {}
        self.num_bytes = 0
        """Mapped."""

    def invite(self, session: bytes) -> str:
        """The token by which a client, whose hello had this session, may lend; "" where nobody can."""
        if not self.socket_name:
            return ""
        token = secrets.token_hex(16)
        self._by_token[token] = Lender(session)
        return token

    def dismiss(self, token: str) -> None:
        """The push connection's greeting has ended: nothing is lent any more."""
        lender = self._by_token.pop(token, None)
        if lender is not None and lender.close is not None:
            lender.close()

    def take(self, lend: Lend, fds: Sequence[int], owner: Lender | None, close: Callable[[], None]) -> Lender:
        """Map what an arena connection lends; `owner`: who lent by it before. The descriptors stay the caller's. Raises
        WireError, and has mapped nothing then."""
        lender = self._by_token.get(lend.token)
        if lender is None or not secrets.compare_digest(lender.session, lend.session):
            raise WireError("unknown_token", "no greeted push connection has this token and session")
        if lender is not owner and (owner is not None or lender.close is not None):
            raise WireError("unknown_token", "one arena connection lends for one push connection")
        if lend.first_block != len(lender.blocks):
            raise WireError("bad_field", f"first_block={lend.first_block}; expected {len(lender.blocks)}")
        if len(fds) != len(lend.sizes):
            raise WireError("bad_memory", f"{len(fds)} descriptors for {len(lend.sizes)} blocks")
        more_bytes, most_bytes = sum(lend.sizes), self._limits.max_lent_bytes_per_connection
        if lender.num_bytes + more_bytes > most_bytes:
            raise WireError("too_much_lent", f"{lender.num_bytes + more_bytes} bytes; at most {most_bytes} of a client")
        if self.num_bytes + more_bytes > self._limits.max_lent_bytes:
            raise WireError("too_much_lent", f"{self.num_bytes} bytes are lent by all clients; no room for more")
        lender.blocks += [map_block(fd, size, lend.epoch) for fd, size in zip(fds, lend.sizes, strict=True)]
        lender.close = close
        self.num_bytes += more_bytes
        self._counters["num_lent_blocks"] += len(fds)
        return lender

    def forget(self, lender: Lender) -> None:
        """Its arena connection is over."""
        self.num_bytes -= lender.num_bytes
        lender.blocks, lender.close = [], None

    def borrow(self, token: str, lent: Lent) -> Loan:
        """The bytes that a `lent` of this push connection speaks of. Raises WireError."""
        lender = self._by_token.get(token)
        if lender is None or lent.block >= len(lender.blocks):
            raise WireError("not_lent", f"block {lent.block} is not lent by this connection")
        block = lender.blocks[lent.block]
        return Loan(block.part(lent.at, lent.num_bytes), block)
