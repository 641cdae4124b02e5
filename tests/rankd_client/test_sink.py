"""Alerts handed to a sink, each at least once."""

from __future__ import annotations

import logging

import pytest

from rankd_client.sink import deliver
from rankd_client.stream import Item

ALERT = Item({"alert_id": "x", "state": "firing"}, "alert")


class Sink:
    """Fails so many times."""

    def __init__(self, num_failures: int, error: BaseException | None = None) -> None:
        self.num_failures, self.error, self.taken = num_failures, error or OSError("away"), list[Item]()

    def __call__(self, alert: Item) -> None:
        self.num_failures -= 1
        if self.num_failures >= 0:
            raise self.error
        self.taken.append(alert)


def test_a_sink_that_returns_is_called_once() -> None:
    waits: list[float] = []
    sink = Sink(0)
    deliver(ALERT, sink, waits.append)
    assert sink.taken == [ALERT] and waits == []


def test_a_sink_that_fails_is_called_again_ever_later_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    waits: list[float] = []
    sink = Sink(9)
    with caplog.at_level(logging.INFO, "rankd_client"):
        deliver(ALERT, sink, waits.append)
    assert sink.taken == [ALERT] and waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [record.getMessage() for record in caplog.records] == [
        "the sink did not take alert 'x': OSError('away'); trying again",
        "the sink took alert 'x' after 9 failures",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_whoever_ends_the_process_is_not_held_up(error: BaseException) -> None:
    with pytest.raises(type(error)):
        deliver(ALERT, Sink(1, error), lambda seconds: None)
