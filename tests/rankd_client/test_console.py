import logging

import pytest

from rankd_client.console import (
    ECHO_LINES,
    ECHO_SECONDS,
    LOG_SECONDS,
    MAX_ECHO_LINES,
    Echo,
    FaultLog,
    describe,
    log,
    warn,
)

INFO = {"severity": "info", "run": "r", "layer": "w", "step": 3, "message": "went back"}


def test_echo_shows_each_alert_but_never_a_screenful_of_info(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    for _ in range(ECHO_LINES + 5):
        echo(INFO, 100.0)
    echo({**INFO, "severity": "critical"}, 100.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["INFO"] * ECHO_LINES + ["CRITICAL"], "a warning comes all the same"
    echo(INFO, 100.0 + ECHO_SECONDS)
    assert capsys.readouterr().err.splitlines() == [
        "rankd: and 5 more of severity info; `rankd tail` shows all",
        "rankd: INFO r step 3 w: went back",
    ]
    echo.close()
    assert capsys.readouterr().err == ""


def test_echo_does_not_fill_a_disk_with_warnings_either(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    for _ in range(MAX_ECHO_LINES + 7):
        echo({**INFO, "severity": "warning"}, 100.0)
    echo(INFO, 100.0)
    assert capsys.readouterr().err.count("\n") == MAX_ECHO_LINES
    echo.close()
    assert capsys.readouterr().err.splitlines() == [
        "rankd: and 1 more of severity info; `rankd tail` shows all",
        "rankd: and 7 more of severity warning or critical; `rankd tail` shows all",
    ]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_exception_is_described_whatever_its_text_does() -> None:
    assert describe(ValueError("a\x1bb")) == "ValueError: a\\x1bb"
    assert describe(Unspeakable()) == "Unspeakable"


class Raising(logging.Handler):
    num_calls = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.num_calls += 1
        raise RuntimeError("no space left")


def test_a_log_handler_that_raises_is_not_heard_of() -> None:
    handler = Raising()
    log.addHandler(handler)
    try:
        warn("a line")
        faults = FaultLog("ipc://nowhere")
        faults.once("kind", "line")
        faults.down("gone")
        faults.up()
    finally:
        log.removeHandler(handler)
    assert handler.num_calls == 4


def test_why_a_daemon_refuses_us_is_said_once_even_where_it_was_told_to_be_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = FaultLog("ipc://d")
    faults.down("no daemon is there yet")
    for _ in range(3):
        faults.refused("not_allowed", "not_allowed: this key may not push")
    assert [record.getMessage() for record in caplog.records] == [
        "rankd: ipc://d: no daemon is there yet; training goes on, trying again",
        "rankd: ipc://d: not_allowed: this key may not push; training goes on, trying again",
    ]
    caplog.clear()
    faults = FaultLog("ipc://d")
    faults.refused("not_allowed", "why")
    faults.up()
    assert [record.getMessage() for record in caplog.records] == [
        "rankd: ipc://d: why; training goes on, trying again",
        "rankd: connected to ipc://d",
    ]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_soon_after_another_is_told_once_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    faults = FaultLog("ipc://d", clock)
    faults.down("the daemon is silent")
    faults.up()
    caplog.clear()
    clock.now = LOG_SECONDS / 2
    faults.down("the daemon has ended")
    faults.look()
    assert caplog.records == []
    clock.now = LOG_SECONDS
    for _ in range(3):
        faults.look()  # though nothing new is seen of it
    faults.up()
    assert [record.getMessage() for record in caplog.records] == [
        "rankd: ipc://d: the daemon has ended; training goes on, trying again",
        "rankd: connected to ipc://d",
    ]


def test_a_daemon_that_comes_and_goes_is_told_of_now_and_then_with_how_often(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    faults = FaultLog("ipc://d", clock)
    for second in range(int(2.5 * LOG_SECONDS)):
        clock.now = float(second)
        (faults.up if second % 2 else faults.down)(*(() if second % 2 else ("gone",)))
        faults.look()
    often = f"gone (and {int(LOG_SECONDS / 2) - 1} times since that was said last)"
    assert [record.getMessage() for record in caplog.records if "connected" not in record.getMessage()] == [
        f"rankd: ipc://d: {why}; training goes on, trying again" for why in ("gone", often, often)
    ]
    assert sum("connected" in record.getMessage() for record in caplog.records) == 3
