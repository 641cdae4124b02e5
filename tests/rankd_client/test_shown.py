"""Which alerts count as new."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from rankd_client.shown import MAX_SHOWN, Shown, take_once

ALERT = {"alert_id": "a", "state": "firing", "stream_id": "s"}


def test_each_state_of_an_alert_is_new_once() -> None:
    shown = Shown()
    assert [shown.add(ALERT) for _ in range(3)] == [True, False, False]
    assert shown.add({**ALERT, "state": "resolved"}) and not shown.add({**ALERT, "state": "resolved"})
    assert shown.add({**ALERT, "alert_id": "b"})


def test_one_that_has_ended_does_not_fire_again() -> None:
    shown = Shown()
    assert shown.add({**ALERT, "state": "resolved"}) and not shown.add(ALERT)


def test_one_of_another_stream_is_new() -> None:
    shown = Shown()
    assert shown.add(ALERT) and shown.add({**ALERT, "stream_id": "t"}) and not shown.add(ALERT)


@pytest.mark.parametrize("alert", [{}, {**ALERT, "alert_id": 7}, {**ALERT, "state": ["firing"]}])
def test_what_has_no_id_is_always_new(alert: dict[str, Any]) -> None:
    shown = Shown()
    assert shown.add(alert) and shown.add(alert)


@pytest.mark.parametrize("stream_id", [None, [], 7])
def test_a_stream_id_may_be_anything(stream_id: Any) -> None:
    shown = Shown()
    assert shown.add({**ALERT, "stream_id": stream_id}) and not shown.add({**ALERT, "stream_id": stream_id})


def test_they_are_bounded() -> None:
    shown = Shown()
    for i in range(MAX_SHOWN + 1):
        assert shown.add({"alert_id": str(i), "state": "firing"})
    assert shown.add({"alert_id": "0", "state": "firing"})
    assert not shown.add({"alert_id": str(MAX_SHOWN), "state": "firing"})


@pytest.mark.parametrize("echoed", [True, False])
def test_an_alert_that_comes_again_is_taken_once(echoed: bool) -> None:
    """At each connection a daemon tells what fires."""
    alerts: deque[dict[str, Any]] = deque()
    shown: list[dict[str, Any]] = []
    take = take_once(alerts, (lambda alert, seconds: shown.append(alert)) if echoed else None)
    for again in (ALERT, ALERT, {**ALERT, "state": "resolved"}, ALERT, {**ALERT, "stream_id": "t"}):
        take(again)
    assert [(told["state"], told["stream_id"]) for told in alerts] == [
        ("firing", "s"),
        ("resolved", "s"),
        ("firing", "t"),
    ]
    assert shown == (list(alerts) if echoed else [])
