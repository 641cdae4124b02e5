import pytest

from rankd_client.console import ECHO_LINES, ECHO_SECONDS, Echo

INFO = {"severity": "info", "run": "r", "layer": "w", "step": 3, "message": "went back"}


def test_echo_shows_each_alert_but_never_a_screenful_of_info(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    for _ in range(ECHO_LINES + 5):
        echo(INFO, 100.0)
    echo({**INFO, "severity": "critical"}, 100.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["INFO"] * ECHO_LINES + ["CRITICAL"], "a warning is never held back"
    echo(INFO, 100.0 + ECHO_SECONDS)
    assert capsys.readouterr().err.splitlines() == [
        "rankd: and 5 more of severity info; `rankd tail` shows all",
        "rankd: INFO r step 3 w: went back",
    ]
    echo.close()
    assert capsys.readouterr().err == ""
