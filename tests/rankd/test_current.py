from collections import Counter
from typing import Any

from rankd.config import Limits
from rankd.current import Current
from rankd.records import Alert, Measurement, State
from rankd.streams import Streams
from rankd_client.wire import Event, Reply, decode_reply, encode_reply

STREAM_ID = "0123456789abcdef"


def measurement(step: int = 1, run: str = "r", layer: str = "w") -> Measurement:
    return Measurement(run, layer, step, (2, 3), True, False, {"stable_rank": 1.5}, time=12.5)


def alert(alert_id: str, state: State = "firing", run: str = "r", layer: str = "w", message: str = "m") -> Alert:
    return Alert(
        alert_id, run, layer, 1, "warning", state, "rule", "stable_rank", 1.0, 2.0, message, "advice", time=12.5
    )


class Side:
    """What the record stage does, without a history."""

    def __init__(self, **limits: Any) -> None:
        self.streams = Streams(STREAM_ID)
        self.current = Current(self.streams, Limits(**limits), Counter())

    def measured(self, measurement: Measurement) -> Event:
        return self.current.measured(measurement, self.streams.next_n(("measurement", measurement.run)))

    def raised(self, alert: Alert) -> Event:
        return self.current.raised(alert, self.streams.next_n(("alert", alert.run)))

    def state(self, run: str | None = None, hidden: str = "") -> dict[str, Any]:
        return self.current.state(run, lambda name: name != hidden)


def test_events_carry_the_numbers_of_their_topic() -> None:
    side = Side()
    events = [side.measured(measurement(1, "x")), side.raised(alert("a", run="x")), side.raised(alert("b", run="x"))]
    events += [side.measured(measurement(2, "x")), side.measured(measurement(1, "y"))]
    assert [(event.kind, event.run, event.seq) for event in events] == [
        *[("measurement", "x", 1), ("alert", "x", 1), ("alert", "x", 2)],
        *[("measurement", "x", 2), ("measurement", "y", 1)],
    ]
    assert {event.stream_id for event in events} == {STREAM_ID}
    body = events[1].body
    assert (body["seq"], body["stream_id"], body["time"]) == (1, STREAM_ID, 12.5)


def test_state_holds_what_is_firing() -> None:
    side = Side()
    side.measured(measurement(1))
    for one in (alert("a"), alert("b", layer="v"), alert("a", "resolved")):
        side.raised(one)
    side.measured(measurement(2))
    side.measured(measurement(7, "other", "v"))
    side.raised(alert("c", run="other"))
    side.raised(alert("c", "rebased", run="other"))
    state = side.state()
    assert [row["alert_id"] for row in state["alerts"]] == ["b"] and not state["truncated"]
    assert sorted(state["numbers"]) == [
        *[["alert", "other", 2], ["alert", "r", 3], ["measurement", "other", 1], ["measurement", "r", 2]]
    ]
    assert state["runs"][0] == {"run": "r", "step": 2, "num_measurements": 2, "layers": 1}
    only = side.state("other")
    assert ([row["run"] for row in only["runs"]], only["alerts"]) == (["other"], [])
    assert side.state("unknown")["numbers"] == []


def test_state_shows_nothing_of_what_is_not_covered() -> None:
    side = Side()
    for run in ("mine", "@other/secret"):
        side.measured(measurement(1, run))
        side.raised(alert(run, run=run))
    assert "secret" not in repr(side.state(hidden="@other/secret"))
    assert side.state("@other/secret", hidden="@other/secret")["alerts"] == []


def test_a_state_fits_a_reply_whatever_the_peers_call_things() -> None:
    side = Side()
    name = "ü" * 500
    for number in range(3000):
        layer, run = f"{number}{name}"[:1000], f"{number % 1500}{name}"[:120]
        side.measured(measurement(number, run, layer))
        side.raised(alert(str(number), run=run, layer=layer, message=f"{layer}: fell"))
    state = side.state()
    assert state["truncated"]
    assert state["alerts"][-1]["alert_id"] == "2999", "the newest are kept"
    assert decode_reply(encode_reply(Reply(1, STREAM_ID, state))).body == state
    assert not side.state(state["runs"][0]["run"])["truncated"], "and run by run one sees all"


def test_a_forgotten_run_keeps_its_numbers() -> None:
    side = Side()
    side.measured(measurement(1))
    side.raised(alert("a"))
    side.current.forget("r")
    assert (side.state()["alerts"], side.state()["runs"]) == ([], [])
    assert [side.measured(measurement(2)).seq, side.raised(alert("b")).seq] == [2, 2]


def test_only_the_newest_events_are_held() -> None:
    side = Side(max_recent_measurements=3)
    for run in ("x", "x", "y", "y"):
        side.measured(measurement(1, run))
    recent = side.current.recent["measurement"]
    assert [recent.first("x"), recent.first("y"), recent.first("z")] == [2, 1, None]
    assert [event.seq for event in recent.since("y", 2, 10)] == [2]
    side.measured(measurement(1, "z"))
    assert recent.first("x") is None, "nothing is left of a run whose last event went"
