"""Times are made up: nothing waits here."""

from __future__ import annotations

import dataclasses

from rankd.gate.framing import Framing
from rankd.gate.limits import push_limits
from rankd.gate.patience import Patience

LIMITS = dataclasses.replace(
    push_limits(16 << 20, 1 << 30), handshake_seconds=5, slow_seconds=30, slow_bytes_per_second=100, stuck_seconds=300
)
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
HANDSHAKE = GREETING + b"\4\6\5READY"


def framed(*pieces: bytes) -> Framing:
    framing = Framing(LIMITS, "NULL")
    for piece in pieces:
        framing.feed(memoryview(piece), 1 << 30)
    return framing


def looked(framing: Framing, patience: Patience, now: float, *, is_read: bool = True, has_held: bool = False) -> None:
    patience.look(framing, is_read, has_held, False, now)


def test_a_handshake_has_its_time() -> None:
    framing, patience = framed(GREETING), Patience(LIMITS, 100)
    looked(framing, patience, 100)
    assert patience.overdue(framing, 105) is None
    assert patience.overdue(framing, 105.1) == "slow"
    looked(framing, patience, 101, is_read=False)
    assert patience.overdue(framing, 200) is None, "it waits for us"
    looked(framing, patience, 201)
    assert patience.overdue(framing, 204) is None
    assert patience.overdue(framing, 206) == "slow"


def test_a_message_has_its_time_by_its_size() -> None:
    framing, patience = framed(HANDSHAKE, b"\2" + (991).to_bytes(8, "big") + b"x"), Patience(LIMITS, 0)
    looked(framing, patience, 1000)
    assert patience.overdue(framing, 1040) is None
    assert patience.overdue(framing, 1040.1) == "slow"


def test_time_in_which_we_did_not_read_is_not_counted() -> None:
    framing, patience = framed(HANDSHAKE, b"\0\5x"), Patience(LIMITS, 0)
    looked(framing, patience, 10)
    looked(framing, patience, 20, is_read=False)
    assert patience.overdue(framing, 1000) is None
    looked(framing, patience, 1020)
    assert patience.overdue(framing, 1040) is None
    assert patience.overdue(framing, 1041) == "slow"


def test_between_messages_there_is_no_hurry_but_a_header_must_end() -> None:
    framing, patience = framed(HANDSHAKE, b"\0\1x"), Patience(LIMITS, 0)
    framing.ends.clear()
    looked(framing, patience, 10)
    assert patience.overdue(framing, 1e6) is None
    looked(framing, patience, 1e6, has_held=True)
    assert patience.overdue(framing, 1e6 + 31) == "slow"


def test_what_nobody_takes_is_stuck() -> None:
    framing, patience = framed(HANDSHAKE, b"\0\1x\0\1y"), Patience(LIMITS, 0)
    looked(framing, patience, 10)
    assert patience.overdue(framing, 310) is None
    framing.ends.popleft()
    looked(framing, patience, 300)
    assert patience.overdue(framing, 600) is None
    assert patience.overdue(framing, 601) == "stuck"
