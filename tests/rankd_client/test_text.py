"""Names and messages of others in a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.text import alert_line, escape

ALERT = {
    "run": "lm-42",
    "layer": "blocks.1.mlp.up",
    "step": 1200,
    "severity": "warning",
    "state": "firing",
    "rule": "effective_rank_drop",
    "metric": "effective_rank",
    "value": 19.87654,
    "baseline": 23.1,
    "message": "effective_rank fell 14 % (23.1 → 19.9)",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blocks.1.mlp.up", "blocks.1.mlp.up"),
        ("σ₁ fell 14 % → é", "σ₁ fell 14 % → é"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\tc\0", r"a\x0ab\x0d\x09c\x00"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),
        ("\u200b\ufeff\U000e0041", r"\u200b\ufeff\U000e0041"),
        ("\ud800", r"\ud800"),
        (None, "-"),
        (7, "7"),
        (True, "True"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        pytest.param(10**5000, "<int>", id="thousands of digits"),
        (b"\x1b", "<bytes>"),
        (["\x1b"], "<list>"),
        ({}, "<dict>"),
    ],
)
def test_escape(text: object, shown: str) -> None:
    assert escape(text) == shown


def test_escape_cuts_long_text_and_says_so() -> None:
    assert escape("x" * 11, max_chars=10) == "x" * 10 + "…"
    assert escape("x" * 10, max_chars=10) == "x" * 10
    assert len(escape("\x1b" * 10**6)) == 4 * 1000 + 1


def test_nothing_of_an_unknown_object_is_called() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise AssertionError("called")

        __repr__ = __str__

    class Number(int):
        __str__ = __repr__ = Hostile.__str__  # type: ignore[assignment]

    assert escape(Hostile()) == "<Hostile>" and escape(Number(3)) == "<Number>"


def test_alert_line() -> None:
    line = "WARNING lm-42 step 1200 blocks.1.mlp.up: effective_rank fell 14 % (23.1 → 19.9)"
    assert alert_line(ALERT) == line


def test_states_other_than_firing_follow_the_severity() -> None:
    assert alert_line(ALERT | {"state": "resolved"}).startswith("WARNING resolved lm-42 step 1200 ")
    assert alert_line(ALERT | {"state": "rebased", "severity": "info"}).startswith("INFO rebased lm-42 ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"layer": None}, "WARNING lm-42 step 1200: m"),
        ({"layer": None, "step": None}, "WARNING lm-42: m"),
        ({"layer": None, "layers": ["a", "b"]}, "WARNING lm-42 step 1200 a, b: m"),
        ({"layer": None, "layers": ["a", "b", "c", "d", "e"]}, "WARNING lm-42 step 1200 a, b, c and 2 more: m"),
        ({"layer": "a", "message": "a: m"}, "WARNING lm-42 step 1200 a: m"),
        ({"layer": "a\nb"}, r"WARNING lm-42 step 1200 a\x0ab: m"),
    ],
)
def test_what_an_alert_is_about(change: dict[str, Any], line: str) -> None:
    assert alert_line(ALERT | {"message": "m"} | change) == line


def test_alert_without_a_message_says_what_it_measured() -> None:
    assert alert_line(ALERT | {"message": ""}).endswith(
        "blocks.1.mlp.up: effective_rank_drop, effective_rank 23.1 → 19.88"
    )
    assert alert_line(ALERT | {"message": "", "metric": None}).endswith(": effective_rank_drop")
    assert alert_line({}) == "ALERT -: -"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*ALERT, "layers"]) | st.text(), ANYTHING))
def test_any_alert_at_all_gives_one_printable_line(alert: dict[str, Any]) -> None:
    line = alert_line(alert)
    assert line.isprintable()
    assert json.loads(json.dumps(line)) == line and line.encode()


def test_an_alert_of_another_role_says_of_which() -> None:
    alert = {"severity": "warning", "run": "r", "layer": "h", "role": "feature", "message": "h (feature): fell"}
    assert alert_line(alert) == "WARNING r h (feature): fell"
    assert alert_line({**alert, "role": 7, "message": "h: fell"}) == "WARNING r h: fell"
