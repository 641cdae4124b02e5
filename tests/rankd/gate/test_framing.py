"""The parser alone, on literal bytes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankd.gate.framing import Breach as BreachError
from rankd.gate.framing import Framing, check_metadata
from rankd.gate.limits import ALERTS_LIMITS, QUERY_LIMITS, GateLimits, push_limits

ROOM = 1 << 40
PUSH = push_limits(16 << 20, 1 << 30)

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
CURVE_GREETING = SIGNATURE + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
DEALER = b"\x0bSocket-Type\0\0\0\x06DEALER"


def command(body: bytes) -> bytes:
    return b"\x04" + bytes([len(body)]) + body if len(body) < 256 else b"\x06" + len(body).to_bytes(8, "big") + body


READY = command(b"\x05READY" + DEALER + b"\x08Identity\0\0\0\0")
HANDSHAKE = GREETING + READY


def frame(payload: bytes, more: bool = False) -> bytes:
    if len(payload) < 256:
        return bytes([more, len(payload)]) + payload
    return bytes([2 | more]) + len(payload).to_bytes(8, "big") + payload


def fed(data: bytes, limits: GateLimits = PUSH, mechanism: str = "NULL", room: int = ROOM) -> tuple[Framing, int]:
    framing = Framing(limits, mechanism)
    return framing, framing.feed(memoryview(data), room)


def reason(data: bytes, limits: GateLimits = PUSH, mechanism: str = "NULL") -> tuple[str | None, int]:
    """Why the peer is cut, and how many of its bytes were let through."""
    framing, taken = fed(data, limits, mechanism)
    assert framing.position == taken
    return framing.breach and framing.breach.reason, taken


def test_what_is_right_goes_through_and_is_counted() -> None:
    message = frame(b"head", more=True) + frame(b"x" * 300)
    framing, taken = fed(HANDSHAKE + message + frame(b""))
    assert taken == len(HANDSHAKE + message) + 2
    assert framing.breach is None
    start = len(HANDSHAKE)
    assert list(framing.ends) == [(start + 6, 6, False), (start + 315, 309, True), (start + 317, 2, True)]
    assert framing.num_messages == 2
    assert not framing.is_inside


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "bad_greeting"),
        (b"\xff" + bytes(8) + b"\x7e", "bad_greeting"),
        (SIGNATURE + b"\x02", "bad_greeting"),
        (SIGNATURE + b"\x04", "bad_greeting"),
        (CURVE_GREETING, "wrong_mechanism"),
        (SIGNATURE + b"\x03\x01" + b"NULLX".ljust(20, b"\0") + bytes(32), "wrong_mechanism"),
        (GREETING + frame(b"x"), "bad_handshake"),
        (GREETING + command(b"\x05ERROR\x01x"), "bad_handshake"),
        (GREETING + command(b""), "bad_handshake"),
        (GREETING + command(b"\x05READY" + DEALER[:-1]), "bad_handshake"),
        (GREETING + command(b"\x05READY\x08Identity\0\0\0\x05\0abcd"), "bad_handshake"),
        (GREETING + b"\x06" + (4097).to_bytes(8, "big"), "too_long"),
        (HANDSHAKE + command(b"\x04PING\0\0"), "bad_command"),
        (HANDSHAKE + command(b"\x04PONG"), "bad_command"),
        (HANDSHAKE + READY, "bad_command"),
        (HANDSHAKE + command(b"\x09SUBSCRIBEx"), "bad_command"),
        (HANDSHAKE + b"\x08\x01x", "bad_frame"),
        (HANDSHAKE + b"\x05\x01x", "bad_frame"),
        (HANDSHAKE + b"\x02" + (1 << 30).to_bytes(8, "big") + b"x" * 1000, "too_long"),
        (HANDSHAKE + b"\x02" + b"\xff" * 8, "too_long"),
        (HANDSHAKE + frame(b"x", more=True) * 5, "too_many_frames"),
        (HANDSHAKE + (b"\x03" + (16 << 20).to_bytes(8, "big") + bytes(16 << 20)) * 2, "too_long"),
    ],
)
def test_the_rule_that_was_broken_is_named_and_nothing_from_there_on_goes_through(sent: bytes, code: str) -> None:
    """Byte by byte as well as at once."""
    named, taken = reason(sent)
    assert named == code
    if len(sent) > 1 << 20:
        return
    framing, held, num_taken = Framing(PUSH, "NULL"), b"", 0
    for byte in sent:
        held += bytes([byte])
        step = framing.feed(memoryview(held), ROOM)
        held, num_taken = held[step:], num_taken + step
        if framing.breach:
            break
    assert framing.breach is not None
    assert framing.breach.reason == code
    assert num_taken == taken


def test_a_claim_is_refused_with_its_header() -> None:
    sent = HANDSHAKE + b"\x02" + (1 << 30).to_bytes(8, "big")
    assert reason(sent) == ("too_long", len(HANDSHAKE))


def test_the_largest_frame_is_allowed_and_one_byte_more_is_not() -> None:
    for limits, mechanism, handshake, slack in (
        (PUSH, "NULL", HANDSHAKE, 0),
        (QUERY_LIMITS, "NULL", HANDSHAKE, 0),
        (PUSH, "CURVE", CURVE_GREETING + command(b"\x05HELLO") + command(b"\x08INITIATE"), 64),
    ):
        longest = limits.max_frame_bytes + slack
        assert reason(handshake + b"\x02" + longest.to_bytes(8, "big"), limits, mechanism)[0] is None
        assert reason(handshake + b"\x02" + (longest + 1).to_bytes(8, "big"), limits, mechanism)[0] == "too_long"


def test_curve_has_its_own_handshake() -> None:
    assert reason(CURVE_GREETING + command(b"\x05HELLO"), mechanism="CURVE")[0] is None
    assert reason(CURVE_GREETING + command(b"\x08INITIATE"), mechanism="CURVE")[0] == "bad_handshake"
    assert reason(CURVE_GREETING + READY, mechanism="CURVE")[0] == "bad_handshake"
    assert reason(GREETING, mechanism="CURVE")[0] == "wrong_mechanism"


def test_a_frame_waits_for_room_and_goes_when_there_is_some() -> None:
    sent = HANDSHAKE + frame(b"x" * 100) + frame(b"y" * 100)
    framing, taken = fed(sent, room=150)
    assert taken == len(HANDSHAKE) + 102
    assert framing.wants_room
    assert framing.feed(memoryview(sent[taken:]), 101) == 0
    assert framing.feed(memoryview(sent[taken:]), 102) == 102
    assert not framing.wants_room


def test_frames_wait_by_number_too() -> None:
    limits = dataclasses.replace(PUSH, window_frames=3)
    framing, taken = fed(HANDSHAKE + frame(b"") * 5, limits)
    assert (taken, framing.wants_room) == (len(HANDSHAKE) + 6, True)
    framing.ends.popleft()
    assert framing.feed(memoryview(frame(b"") * 2), ROOM) == 2


def subscription(topic: bytes, change: int = 1) -> bytes:
    return command((b"\x09SUBSCRIBE" if change > 0 else b"\x06CANCEL") + topic)


@pytest.mark.parametrize("make", [subscription, lambda topic, change=1: frame(bytes([change > 0]) + topic)])
def test_subscriptions_are_counted(make: object) -> None:
    assert callable(make)
    assert reason(HANDSHAKE + make(b"alert"), ALERTS_LIMITS)[0] is None
    few = dataclasses.replace(ALERTS_LIMITS, max_subscriptions=2)
    assert reason(HANDSHAKE + make(b"a") + make(b"b") + make(b"b", -1) + make(b"c"), few)[0] is None
    assert reason(HANDSHAKE + make(b"a") * 3, few)[0] == "too_many_subscriptions"
    framing = Framing(ALERTS_LIMITS, "NULL")
    framing.feed(memoryview(HANDSHAKE), ROOM)
    while framing.breach is None and framing.position < 1 << 20:
        framing.feed(memoryview(make(b"a") + make(b"a", -1)), ROOM)
        framing.ends.clear()
    assert framing.breach is not None
    assert framing.breach.reason == "too_many_subscriptions"
    assert reason(HANDSHAKE + make(b"x" * 513), ALERTS_LIMITS)[0] == "too_long"


@pytest.mark.parametrize("sent", [b"\0\0", frame(b"\2x"), frame(b"\1x", more=True)])
def test_what_is_no_subscription_is_refused(sent: bytes) -> None:
    assert reason(HANDSHAKE + sent, ALERTS_LIMITS)[0] == "bad_subscription"


PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([GREETING, CURVE_GREETING, READY, frame(b"x"), frame(b"x", more=True), frame(bytes(300))]),
    st.sampled_from([subscription(b"t"), subscription(b"t", -1), command(b"\x05HELLO"), b"\x02\0\0\0\0", b"\xff" * 9]),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw, on a busy machine
@given(
    st.lists(PIECES, max_size=12),
    st.lists(st.integers(1, 70), min_size=1, max_size=8),
    st.sampled_from([PUSH, ALERTS_LIMITS, QUERY_LIMITS]),
    st.sampled_from(["NULL", "CURVE"]),
)
def test_any_bytes_in_any_cuts_give_the_same(
    pieces: list[bytes], steps: list[int], limits: GateLimits, mechanism: str
) -> None:
    """No exception, nothing let through twice, and where the reads fall makes no difference."""
    sent = b"".join(pieces)
    whole, taken = fed(sent, limits, mechanism)
    framing, held, position, turn = Framing(limits, mechanism), b"", 0, 0
    while position < len(sent) and framing.breach is None:
        step = steps[turn % len(steps)]
        held += sent[position : position + step]
        position, turn = position + step, turn + 1
        good = framing.feed(memoryview(held), ROOM)
        assert 0 <= good <= len(held)
        held = held[good:]
    assert framing.position == taken
    assert list(framing.ends) == list(whole.ends)
    assert (framing.breach and framing.breach.reason) == (whole.breach and whole.breach.reason)


@given(st.binary(max_size=100))
def test_any_metadata_is_good_or_a_breach(data: bytes) -> None:
    try:
        check_metadata(data)
    except BreachError as error:
        assert error.reason == "bad_handshake"


def test_limits_that_could_never_let_a_message_through_are_refused() -> None:
    with pytest.raises(ValueError, match="window_bytes=1000: expected at least a message, 16"):
        dataclasses.replace(PUSH, window_bytes=1000)
    with pytest.raises(ValueError, match="max_total_bytes=1000: expected at least"):
        dataclasses.replace(PUSH, max_total_bytes=1000)
