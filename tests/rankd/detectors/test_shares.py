"""How far errors may move an average against its baseline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.detectors.ema import EmaDropDetector
from rankd.detectors.precision import MIXED, Precision
from rankd.detectors.shares import MAX_SIGNATURES, Share, explained_fall, packed, unpacked, with_reading


def near(value: float, signature: str) -> Precision:
    return Precision(signature, value * 0.9, value * 1.1)


def test_one_signature_explains_nothing_and_two_what_their_bars_say() -> None:
    then = with_reading({}, 1.0, 10.0, near(10.0, "a"))
    for _ in range(5):
        then = with_reading(then, 0.1, 10.0, near(10.0, "a"))
    assert explained_fall(then, then) == 0.0
    now = with_reading(then, 0.5, 8.0, near(8.0, "b"))
    # Half of the baseline's errors are in both; the other half may be 1 lower, and 8 be 0.8 higher.
    assert explained_fall(then, now) == pytest.approx(0.5 * 1.0 + 0.5 * 0.8)
    assert explained_fall({}, now) == pytest.approx(0.5 * 1.0 + 0.5 * 0.8), "plain readings have no errors"
    assert unpacked(packed(now)) == now


def test_what_is_mixed_has_nothing_in_common() -> None:
    mixed = {MIXED: Share(1.0, 0.5, 0.25)}
    assert explained_fall(mixed, mixed) == 0.75


def test_only_so_many_signatures_are_told_apart() -> None:
    shares: dict[str, Share] = {}
    for number in range(100):
        shares = with_reading(shares, 0.01, 10.0, near(10.0, str(number)))
        assert len(shares) <= MAX_SIGNATURES
    assert MIXED in shares
    assert sum(share.weight for share in shares.values()) == pytest.approx(1.0)
    for _ in range(4000):
        shares = with_reading(shares, 0.01, 10.0, None)
    assert list(shares) == [""]


@given(
    errors=st.fixed_dictionaries({name: st.floats(-0.09, 0.09) for name in "abc"}),
    order=st.text("abc-", min_size=1, max_size=60),
)
def test_a_constant_raises_nothing_however_it_is_read(errors: dict[str, float], order: str) -> None:
    detector = EmaDropDetector(alpha=0.3, threshold_pct=0.0, window=3)
    for step, name in enumerate(order * 3):
        value = 10.0 * (1 + errors.get(name, 0.0))
        assert detector.update(value, step, None if name == "-" else near(value, name)) is None


def test_a_real_fall_across_a_change_still_fires_and_ends() -> None:
    detector = EmaDropDetector(alpha=0.5, threshold_pct=0.2, window=5)
    states = []
    for step in range(60):
        value = 10.0 if step < 10 or step >= 40 else 5.0
        verdict = detector.update(value, step, near(value, "a") if step < 10 else near(value, "b"))
        states += [(step, verdict.state)] if verdict else []
    # The average is at 6.25 at step 11: 3.75 lower, of which 0.75 + 0.45 may be error.
    assert states == [(11, "firing"), (40, "resolved")]
