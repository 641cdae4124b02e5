"""Which alerts are severe enough."""

from __future__ import annotations

from typing import Any

import pytest

from rankd_client.stream import severity
from rankd_client.stream.severity import Begun, SeverityFilter, alert_token


def alert(alert_id: str, severity: str = "info", state: str = "firing", **more: Any) -> dict[str, Any]:
    return {"run": "r", "alert_id": alert_id, "severity": severity, "state": state, **more}


def test_the_end_of_what_was_shown_is_shown_and_of_what_was_not_is_not() -> None:
    concerns = SeverityFilter("warning")
    assert [concerns(alert("a")), concerns(alert("b", "warning")), concerns(alert("c", "critical"))] == [0, 1, 1]
    assert [concerns(alert(name, state="resolved")) for name in "abc"] == [0, 1, 1]
    assert not concerns(alert("b", state="resolved"))
    assert concerns(alert("d", "warning")) and not concerns(alert("d", state="resolved", run="another"))


def test_without_a_severity_all_are_wanted_even_of_one_unheard_of() -> None:
    assert SeverityFilter()(alert("a", "new")) and not SeverityFilter("info")(alert("a", "new"))
    with pytest.raises(ValueError, match="severity='loud'; expected one of info, warning, critical"):
        SeverityFilter("loud")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(severity, "MAX_BEGUN", 2)
    begun = Begun()
    for name in ("a", "b", "a", "c"):
        begun.note(alert(name))
    assert list(begun) == [alert_token(alert("a")), alert_token(alert("c"))]
    assert len(alert_token(alert("x" * 100_000))) == 16 == len(alert_token({}))
