"""What pushing is said to cost, by a clock that is given."""

from __future__ import annotations

import msgpack
import pytest

from rankd_client.stats import Meter, Stats


def test_before_the_first_push_there_is_nothing() -> None:
    assert Meter().stats() == Stats()
    assert Stats().num_layers == Stats().num_never == Stats().oldest_steps == 0


def test_cost_and_coverage() -> None:
    meter = Meter()
    meter.watching(("a", "b", "c"))
    for step in range(0, 41):
        now = 100.0 + step
        meter.called(step, now)
        if step % 10 == 0:
            meter.pushed(step, now, 0.5, 1000, ["a"] if step else ["a", "b"])
    meter.skipped()
    stats = meter.stats(path="memfd", max_overhead=0.005)
    assert (stats.step, stats.num_pushes, stats.num_due, stats.num_skipped) == (40, 5, 6, 1)
    assert (stats.blocked_seconds, stats.elapsed_seconds, stats.share) == (2.5, 40.0, pytest.approx(2.5 / 40))
    assert stats.step_seconds == pytest.approx(1.0) and stats.push_seconds == pytest.approx(0.5)
    assert stats.wire_bytes == 5000
    assert dict(stats.ages_steps) == {"a": 0, "b": 40, "c": None}
    assert (stats.num_layers, stats.num_never, stats.oldest_steps) == (3, 1, 40)


def test_layers_that_are_gone_are_not_told_of() -> None:
    meter = Meter()
    meter.watching(("a", "b"))
    meter.called(3, 1.0)
    meter.pushed(3, 1.0, 0.1, 10, ["a", "b"])
    meter.watching(("b", "c"))
    assert dict(meter.stats().ages_steps) == {"b": 0, "c": None}


def test_a_step_that_goes_back_is_no_negative_time() -> None:
    meter = Meter()
    for step, now in ((10, 1.0), (20, 2.0), (5, 3.0), (15, 4.0)):
        meter.called(step, now)
        meter.pushed(step, now, 0.1, 1, [])
    assert meter.stats().step_seconds == pytest.approx(0.1)


def test_of_a_layer_pushed_after_the_step_that_a_run_went_back_to_there_is_none_yet() -> None:
    meter = Meter()
    meter.watching(("a", "b"))
    for step, name in ((90, "a"), (120, "b")):
        meter.called(step, step)
        meter.pushed(step, step, 0.1, 1, [name])
    meter.called(100, 200.0)
    assert dict(meter.stats().ages_steps) == {"a": 10, "b": None}
    meter.called(130, 300.0)
    assert dict(meter.stats().ages_steps) == {"a": 40, "b": None}
    assert (meter.stats().num_never, meter.stats().oldest_steps) == (1, 40)


def test_the_summary_fits_a_heartbeat_however_many_layers_there_are() -> None:
    meter = Meter()
    meter.watching(tuple(f"layer.{index}" for index in range(10_000)))
    told = meter.stats().summary()
    assert "ages_steps" not in told and (told["num_layers"], told["num_never"]) == (10_000, 10_000)
    assert len(msgpack.packb(told)) < 1000
