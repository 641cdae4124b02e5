from __future__ import annotations

import pytest

from rankd.executors.ray.deaths import COUNTER, PAUSE_SECONDS, Deaths


def test_each_is_counted_and_one_a_minute_is_told(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[str] = []
    now = 5.0
    deaths = Deaths(counted.append, lambda: now)
    for number in range(4):
        deaths(f"pid={number}")
    now += PAUSE_SECONDS
    deaths("pid=4")
    assert counted == [COUNTER] * 5
    assert [(record.levelname, record.args) for record in caplog.records] == [
        ("WARNING", (1, "pid=0")),
        ("WARNING", (4, "pid=4")),
    ]
