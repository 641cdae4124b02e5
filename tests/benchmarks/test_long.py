"""The long benchmarks in seconds: every harness works, and what does not depend on the machine's speed holds.

Rows about delays, fairness and memory need more time, and a machine of their own: `make bench-…` judges them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fork_server
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIMIT_SECONDS = 300


def rows_of(script: str, *options: str) -> dict[str, dict[str, Any]]:
    """Name → row. It must not have failed otherwise than by missing a limit."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = fork_server.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


def assert_kept(rows: dict[str, dict[str, Any]], *names: str) -> None:
    assert [rows[name] for name in names if not rows[name]["ok"]] == []


@pytest.mark.e2e
@pytest.mark.long
def test_nothing_is_lost_by_a_few_kills() -> None:
    rows = rows_of("kills.py", "--kills", "2", "--measurements", "140", "--layers", "6", "--pause", "0.05")
    assert_kept(rows, *rows)
    assert rows["acknowledged_measurements_lost"]["acknowledged"] >= 120
    assert rows["alerts_lost_steady"]["published"] > 0


@pytest.mark.e2e
def test_a_few_trainers_at_once_make_no_errors_and_all_is_on_disk() -> None:
    rows = rows_of("trainers.py", "--trainers", "3", "--seconds", "2")
    assert_kept(rows, "trainer_errors", "peak_rss", "measurements_not_on_disk", "daemon_exit_code")
    assert rows["measurements_not_on_disk"]["on_disk"] > 0


@pytest.mark.e2e
@pytest.mark.long
def test_stuck_subscribers_cost_the_others_no_measurement() -> None:
    rows = rows_of("subscribers.py", "--subscribers", "10", "--stuck", "2", "--window-seconds", "3")
    assert_kept(rows, "gaps", "trainer_errors", "daemon_exit_code")
    assert len(rows["items_fewest_over_most"]["items"]) == 3


@pytest.mark.e2e
@pytest.mark.long
def test_a_short_soak_leaves_no_file_open() -> None:
    rows = rows_of(
        "soak.py", "--minutes", "0.15", "--kill-seconds", "4", "--life-seconds", "2", "--runs", "3", "--readers", "3"
    )
    assert_kept(rows, "open_files_when_all_have_left", "trainer_errors", "daemon_exit_codes")
    counts = rows["trainer_errors"]
    assert counts["runs"] > 2 and counts["readers"] > 2 and counts["kills"] >= 1


@pytest.mark.e2e
@pytest.mark.long
def test_under_overload_what_is_given_up_is_counted_and_the_newest_is_measured() -> None:
    options = ("--minutes", "0.08", "--calibrate", "2", "--trainers", "2", "--layers", "4", "--size", "384")
    rows = rows_of("overload.py", *options)
    assert_kept(rows, "growth_of_rss", "neither_measured_nor_counted", "layers_without_their_newest_step")
    assert_kept(rows, "alerts_of_others", "trainer_errors", "daemon_exit_code")
    assert rows["neither_measured_nor_counted"]["dropped_superseded"] > 0 and rows["lag_told"]["seconds"] > 0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # a dataclass looks up its module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def kills(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("kills")


def test_a_layer_that_is_not_measured_for_long_would_be_seen(script: Callable[[str], ModuleType]) -> None:
    ages, pushed = script("overload").ages, [(step, 10.0 + step) for step in range(11)]
    assert ages([(1, 12.0), (4, 15.0), (9, 19.5)], pushed) == [2.0, 4.0, 5.5, 1.0]
    assert ages([(1, 12.0)], pushed) == [2.0, 9.0], "and then no more"
    assert ages([(0, 9.0), (10, 25.0)], pushed) == [10.0], "before and after do not count"


def missed(kills: ModuleType, judge: str, *arguments: Any) -> list[str]:
    report = kills.Report()
    getattr(kills, judge)(report, *arguments)
    assert report.exit_code == bool(report.missed)
    return list(report.missed)


def test_a_loss_or_a_repeat_would_be_seen(kills: ModuleType) -> None:
    told = Counter({("push", 1, "w"): 1, ("push", 2, "w"): 1, ("recorded", 1, "w"): 2, ("superseded", 2, "w"): 1})
    first, second = {"step": 1, "layer": "w"}, {"step": 2, "layer": "w"}
    assert missed(kills, "judge_measurements", told, [first]) == []
    assert missed(kills, "judge_measurements", told, [second]) == ["acknowledged_measurements_lost"]
    assert missed(kills, "judge_measurements", told, [first, first]) == ["measurements_recorded_twice"]


def test_alerts_lost_repeated_or_out_of_order_would_be_seen(kills: ModuleType) -> None:
    a, b, c = ("a", "firing"), ("b", "firing"), ("a", "resolved")
    for read, own_kills, expected in (
        ([a, b, c], 0, []),
        ([a, c], 0, ["alerts_lost_x"]),
        ([a, b, b, c], 0, ["alerts_repeated_x"]),
        ([a, b, b, c], 1, []),
        ([b, a, c], 0, ["alerts_out_of_order_x"]),
    ):
        assert missed(kills, "judge_subscriber", "x", read, [a, b, c], own_kills) == expected


def test_alerts_unlike_those_of_a_replay_would_be_seen(kills: ModuleType) -> None:
    alert = {"alert_id": "a", "state": "firing", "rule": "zero", "step": 1, "stream_id": "1", "seq": 1}
    assert missed(kills, "judge_alerts", [alert], [{**alert, "stream_id": "2", "seq": 9}]) == []
    assert missed(kills, "judge_alerts", [alert], [{**alert, "step": 2}]) == ["alerts_unlike_replay"]
    assert missed(kills, "judge_alerts", [alert], []) == ["alerts_unlike_replay"]
