"""Parts that a layer has no longer: what was on of them ends once, whatever was restarted in between."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain

import pytest

from rankd.detectors import DEFAULT_CONFIG
from rankd.judge import DetectConfig, Key, LayerJudge, RunJudges
from rankd.judge.state import pack_state, unpack_state
from rankd.records import Alert, Measurement
from rankd.replay import replay
from rankd.stages.detect import Detect

HEALTHY = {"effective_rank": 100.0, "stable_rank": 10.0, "spectral_norm": 1.0}
ZERO = dict.fromkeys(HEALTHY, 0.0)


def row(step: int, layer: str = "h", zero: bool = False, **extra: object) -> Measurement:
    return Measurement("r", layer, step, (8, 8), True, zero, ZERO if zero else HEALTHY, extra=extra)


def snapshot(step: int, names: str = "", zero: str = "") -> list[Measurement]:
    """A layer cut into parts `names`, those of `zero` all zero: a row of each, and one of the whole."""
    parts = [row(step, f"h:{name}", name in zero, part_of="h") for name in names]
    return [*parts, row(step, parts=list(names)) if names else row(step)]


@dataclass
class History:
    """As the daemon's: the rows of each layer, and its last state with how many of them that state knows."""

    rows: dict[Key, list[Measurement]] = field(default_factory=dict)
    states: dict[Key, tuple[bytes, int]] = field(default_factory=dict)

    def recall(
        self, run: str, layer: str, role: str, *, whole: bool = False
    ) -> tuple[bytes | None, list[Measurement]] | None:
        key = (run, layer, role)
        state, known = self.states.get(key, (None, 0))
        return None if key not in self.rows else (state, self.rows[key][known:])


def feed(detect: Detect, history: History, rows: Iterable[Measurement]) -> list[Alert]:
    """As the daemon feeds the rows of one snapshot."""
    rows, alerts = list(rows), []
    for measurement in rows:
        for layer in detect.unknown(measurement):
            detect.take(detect.recall(layer, history.recall))
    for measurement in rows:
        key = (measurement.run, measurement.layer, measurement.role)
        alerts += detect(measurement)
        history.rows.setdefault(key, []).append(measurement)
        if (state := detect.due(measurement)) is not None:
            history.states[key] = (state, len(history.rows[key]))
    return alerts


def summary(alerts: Iterable[Alert]) -> list[tuple[str, str, str, int | None]]:
    return [(alert.layer or "", alert.rule, alert.state, alert.step) for alert in alerts]


def restarted(snapshots: Iterable[list[Measurement]], before: Iterable[int]) -> list[Alert]:
    """With a restart before each of these snapshots."""
    detect, history, alerts = Detect(DEFAULT_CONFIG), History(), []
    for place, rows in enumerate(snapshots):
        if place in before:
            detect = Detect(DEFAULT_CONFIG)
        alerts += feed(detect, history, rows)
    return alerts


LOST = [snapshot(1, "qkv"), snapshot(2, "qkv", "kv"), snapshot(3), snapshot(4), snapshot(5)]


@pytest.mark.parametrize("before", [(), (2,), (3,), (2, 3, 4)], ids=str)
def test_what_is_on_of_a_part_ends_once_with_the_first_whole_without_it(before: tuple[int, ...]) -> None:
    *fired, k, v = restarted(LOST, before)
    assert summary(fired) == [("h:k", "zero", "firing", 2), ("h:v", "zero", "firing", 2)]
    assert summary([k, v]) == [("h:k", "zero", "rebased", 3), ("h:v", "zero", "rebased", 3)]
    assert [k.alert_id, v.alert_id] == [alert.alert_id for alert in fired]
    assert k.severity == "info"
    assert k.message == "h:k: h has no such part any more: another split rule, or another shape"


def test_nothing_is_left_on() -> None:
    judges = RunJudges()
    for measurement in chain(*LOST):
        judges.update(measurement)
    assert judges.firing() == []


def test_only_of_the_parts_that_are_lost() -> None:
    alerts = restarted([snapshot(1, "qkv", "kv"), snapshot(2, "qv", "v"), snapshot(3, "qv")], (1, 2))
    assert summary(alerts[2:]) == [("h:k", "zero", "rebased", 2), ("h:v", "zero", "resolved", 3)]


@pytest.mark.parametrize("bad", [row(2, zero=True), replace(row(2), finite=False)], ids=["zero", "nonfinite"])
def test_a_bad_whole_that_was_not_measured_has_lost_nothing(bad: Measurement) -> None:
    alerts = restarted([snapshot(1, "qk", "k"), [bad], snapshot(3, "qk", "k"), snapshot(4, "qk")], ())
    assert [each for each in summary(alerts) if each[0] == "h:k"] == [
        ("h:k", "zero", "firing", 1),
        ("h:k", "zero", "resolved", 4),
    ]


@pytest.mark.parametrize("before", [(), (2,), (3,), (2, 3, 4)], ids=str)
def test_a_part_that_comes_back_begins_anew(before: tuple[int, ...]) -> None:
    """Its own record has it that the alert is still on."""
    dead = [snapshot(1, "qk", "k"), snapshot(2), snapshot(3, "qk", "k"), snapshot(4, "qk")]
    first, ended, again, resolved = restarted(dead, before)
    assert summary([first, ended, again, resolved]) == [
        ("h:k", "zero", "firing", 1),
        ("h:k", "zero", "rebased", 2),
        ("h:k", "zero", "firing", 3),
        ("h:k", "zero", "resolved", 4),
    ]
    assert first.alert_id == ended.alert_id != again.alert_id == resolved.alert_id
    alive = [snapshot(1, "qk", "k"), snapshot(2), snapshot(3, "qk"), snapshot(1, "qk")]
    assert [each for each in summary(restarted(alive, before)) if each[1] == "zero"] == summary([first, ended])


@pytest.mark.parametrize("seed", range(30))
def test_restarts_and_a_replay_give_the_same(seed: int) -> None:
    source, snapshots = random.Random(seed), []
    names = "qk"
    for step in range(1, 100):
        names = source.choice((names, names, names, "", "k", "qk", "qkv"))
        zero = source.choice(("", "k", "qv"))
        snapshots.append(snapshot(step, names, zero) if source.random() < 0.9 else [row(step, zero=True)])
    alerts = restarted(snapshots, ())
    assert alerts == restarted(snapshots, range(100)) == restarted(snapshots, source.sample(range(100), 10))
    replayed = list(replay(chain(*snapshots)))
    assert replayed == [replace(alert, stream_id="", seq=place) for place, alert in enumerate(alerts, 1)]
    ends = [alert for alert in alerts if alert.state == "rebased"]
    assert len(ends) > 3 and len({alert.alert_id for alert in ends}) == len(ends)


def test_a_layer_that_is_only_called_as_a_part_is_goes_on() -> None:
    """Its rows say of no weight that they are part of it."""
    judges = RunJudges()
    named = [row(step, "h:q", zero=step < 4) for step in (2, 3, 4)]
    alerts = [judges.update(each) for each in [*snapshot(1, "q", "q"), *snapshot(2), *named]]
    assert summary(chain(*alerts)) == [
        ("h:q", "zero", "firing", 1),
        ("h:q", "zero", "rebased", 2),
        ("h:q", "zero", "firing", 2),
        ("h:q", "zero", "resolved", 4),
    ]


def test_a_state_from_before_knows_of_no_parts() -> None:
    judge = LayerJudge("r", "h", config=DetectConfig())
    judge.update(row(1, parts=["q", "k"]))
    state, detectors = unpack_state(judge.state())
    assert state.pop("parts") == {"q": True, "k": True}
    older = LayerJudge.restored("r", "h", "weight", pack_state(state, detectors))
    assert older.parts.lost(row(2)) == [] and judge.parts.lost(row(2)) == ["q", "k"]
    older.update(row(2, parts=["q"]))
    assert older.parts.lost(row(3)) == ["q"]


@pytest.mark.parametrize("parts", [5, "qk", True, {"q": 1}, [[1], None, 3]])
def test_what_is_no_list_of_names_names_nothing(parts: object) -> None:
    judges = RunJudges()
    assert [judges.update(row(step, parts=parts)) for step in (1, 2)] == [[], []]
    assert judges.lost(row(3)) == []
