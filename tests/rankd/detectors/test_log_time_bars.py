"""The default rule where readings have error bars, at the exact steps."""

from collections.abc import Iterable

import pytest

from rankd.detectors.log_time import LogTimeDetector, Scale
from rankd.detectors.precision import NOT_READ, Precision
from rankd.records import Verdict

SCALES = (Scale(1.05, 0.06), Scale(1.15, 0.08))

Read = tuple[float | None, Precision | None]


def drop() -> LogTimeDetector:
    return LogTimeDetector("effective_rank_drop", "effective_rank", direction=-1, scales=SCALES)


def plain(value: float, number: int) -> list[Read]:
    return [(value, None)] * number


def estimate(value: float, number: int, width: float = 0.05, signature: str = "estimate") -> list[Read]:
    return [(value, Precision(signature, value * (1 - width), value * (1 + width)))] * number


def corrected(value: float, raw: float, number: int) -> list[Read]:
    return [(value, Precision("int8 corrected", value, raw, raw))] * number


def feed(detector: LogTimeDetector, readings: Iterable[Read], start: int = 1000) -> list[tuple[int, Verdict]]:
    read = ((step, detector.update(value, step, precision)) for step, (value, precision) in enumerate(readings, start))
    return [(step, verdict) for step, verdict in read if verdict is not None]


def states(readings: Iterable[Read]) -> list[tuple[int, str]]:
    return [(step, verdict.state) for step, verdict in feed(drop(), readings)]


def test_of_one_signature_the_values_count() -> None:
    assert states(estimate(100, 200) + estimate(85, 30)) == [(1203, "firing"), (1220, "rebased")]


def test_across_a_change_only_what_errors_cannot_explain() -> None:
    assert states(plain(100, 200) + estimate(90, 300)) == []
    ((_, firing),) = feed(drop(), plain(100, 200) + estimate(80, 5))
    assert firing.detail == (
        "effective_rank fell 20 % (100 → 80), compared with step 1145; at least 15.2 % whatever the errors of measuring"
    )  # 84.8 of 100: margins are remembered a fifth wider than they are


def test_a_change_and_a_collapse_at_once_still_fire_at_the_third_reading() -> None:
    assert states(corrected(699, 700, 200) + plain(8, 5)) == [(1203, "firing")]
    assert states(plain(700, 200) + corrected(8, 26, 5)) == [(1203, "firing")]


def test_through_noise_a_fall_has_to_show_in_the_raw_value_too() -> None:
    assert states(corrected(699, 700, 200) + corrected(8, 26, 5)) == [(1203, "firing")]
    assert states(corrected(20, 26, 200) + corrected(8, 26, 300)) == [], "only the correction wavers"
    assert states(corrected(20, 30, 200) + corrected(20, 22, 300)) == [], "only the noise fell"


def test_rows_from_before_corrections_are_raw() -> None:
    assert states(plain(26, 200) + corrected(8, 26, 300)) == []
    assert states(plain(26, 200) + corrected(8, 26, 100) + corrected(5, 18, 10)) == [(1303, "firing")]


def test_a_single_reading_of_another_kind_is_an_outlier() -> None:
    mixed = [reading for _ in range(20) for reading in estimate(100, 9) + plain(96, 1)]
    assert states(mixed + estimate(85, 5)) == [(1203, "firing")]


def test_what_cannot_be_told_neither_counts_nor_ends_a_streak() -> None:
    unsure = [reading for _ in range(40) for reading in plain(91, 2) + estimate(91, 2)]
    found = states(plain(100, 200) + unsure)
    assert found[0] == (1205, "firing"), "the levels at 1201, 1202 and 1205 are plain"


def test_resolved_where_it_may_be_back_and_rebased_where_it_settles_across_a_change() -> None:
    low = plain(100, 200) + plain(85, 10)
    assert states(low + estimate(97, 30)) == [(1203, "firing"), (1230, "resolved")]
    assert states(low + estimate(82, 30)) == [(1203, "firing"), (1220, "rebased")], "not held up by the change"
    falling = [reading for step in range(60) for reading in estimate(85 * 0.99**step, 1)]
    assert states(low + falling) == [(1203, "firing")], "not settled for the change"


def test_after_a_while_without_the_metric_a_fall_is_held_against_the_longer_time() -> None:
    unread: list[Read] = [(None, NOT_READ)] * 1000
    assert states(plain(100, 200) + plain(75, 5)) == [(1203, "firing")]
    assert states(plain(100, 200) + unread + plain(75, 100)) == [], "0.29 in ×1.84, where θ is 0.08 in ×1.15"
    assert states(plain(100, 200) + unread + plain(30, 5)) == [(2203, "firing")]
    assert states(plain(100, 200) + unread + plain(75, 200) + plain(68, 5)) == [(2403, "firing")], "as ever"


@pytest.mark.parametrize("cut", [150, 201, 202, 204, 215, 230])
def test_restored_and_rewound_it_goes_on_alike(cut: int) -> None:
    readings = corrected(100, 101, 200) + estimate(80, 10) + corrected(70, 75, 10) + plain(60, 60)
    detector, again = drop(), drop()
    feed(detector, readings[:cut])
    again.restore(detector.state())
    for each in (detector, again):
        each.rewind(1000 + cut - 3)
    rest = readings[cut - 3 :]
    assert feed(again, rest, 1000 + cut - 3) == feed(detector, rest, 1000 + cut - 3)
    assert again.state() == detector.state()
