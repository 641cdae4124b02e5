import logging

import pytest

from rankd.alertlog import LINES_AT_ONCE, LINES_PER_SECOND, MAX_VALUE_CHARACTERS, AlertLog

ALERT = {
    "run": "r",
    "layer": "w\n",
    "step": 3,
    "rule": "zero",
    "state": "firing",
    "severity": "critical",
    "message": "m",
}


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_line_for_each_alert(caplog: pytest.LogCaptureFixture) -> None:
    AlertLog(lambda: 0.0)(ALERT)
    (record,) = caplog.records
    line = r"alert run='r' layer='w\n' step=3 rule='zero' state='firing' severity='critical'"
    assert (record.name, record.getMessage()) == ("rankd.daemon", line)


def test_a_flood_makes_few_lines_and_says_how_many_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    alert_log = AlertLog(lambda: now[0])
    for _ in range(5000):
        alert_log(ALERT)
    assert len(caplog.records) == LINES_AT_ONCE
    now[0] = 2 / LINES_PER_SECOND
    alert_log(ALERT)
    left_out, line = caplog.records[-2:]
    assert "num_left_out=4000" in left_out.getMessage() and line.getMessage().startswith("alert run=")


def test_no_name_makes_a_long_line(caplog: pytest.LogCaptureFixture) -> None:
    AlertLog(lambda: 0.0)({**ALERT, "layer": "\x01" * 1024})
    assert len(caplog.records[0].getMessage()) < MAX_VALUE_CHARACTERS + 200
