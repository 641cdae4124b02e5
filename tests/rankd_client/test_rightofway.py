"""A push goes before the outlet's thread, once and not for long."""

from __future__ import annotations

import threading
import time

import pytest

from rankd_client.rightofway import RightOfWay

PATIENCE_SECONDS = 20.0


def test_nobody_waits_where_nothing_is_pushed() -> None:
    way = RightOfWay()
    with way:
        pass
    way.give()


def test_who_comes_in_a_push_waits_for_its_end() -> None:
    way, order = RightOfWay(), list[str]()
    given = threading.Event()

    def other() -> None:
        given.set()
        way.give()
        order.append("the other")

    thread = threading.Thread(target=other)
    with way:
        thread.start()
        given.wait(PATIENCE_SECONDS)
        order.append("the push")
    thread.join(PATIENCE_SECONDS)
    assert order == ["the push", "the other"]


def test_a_push_that_takes_long_is_waited_for_once_and_not_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    way, slept = RightOfWay(), list[float]()
    monkeypatch.setattr(time, "sleep", slept.append)
    with way:
        way.give()  # on this very thread: nobody ends the push meanwhile
        num_slept = len(slept)
        way.give()
    assert 0 < num_slept == len(slept)


def test_the_outlet_has_half_of_the_time_however_often_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    way, slept, now = RightOfWay(), list[float](), 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(10_000):
        with way:  # one after another, without a pause
            way.give()
            now += 0.0001
    assert 0.4 * now < sum(slept) < 0.55 * now


def test_it_ends_with_the_push_whatever_comes_of_it() -> None:
    way = RightOfWay()
    try:
        with way:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not way._is_pushing
