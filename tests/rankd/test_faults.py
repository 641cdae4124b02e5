from rankd.faults import CLOCK_FAULT_SECONDS, DAEMON_RUN, KINDS, ClockWatch, Faults
from rankd.records import SEVERITIES


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_fault_fires_once_and_is_resolved_under_the_same_id() -> None:
    clock = Clock(1000.0)
    faults = Faults("stream", clock, clock)
    assert faults.clear("history") is None and not faults
    fired = faults.set("history", "no space left on device")
    assert fired is not None
    assert (fired.run, fired.layer, fired.step, fired.rule) == (DAEMON_RUN, None, None, "daemon_history")
    assert (fired.state, fired.severity, fired.time) == ("firing", "critical", 1000.0)
    assert fired.message == "no space left on device" and fired.advice == KINDS["history"].advice
    clock.now = 1001.0
    assert faults.set("history", "still none") is None
    assert [(fault["name"], fault["text"], fault["since"]) for fault in faults.listing()] == [
        ("history", "still none", 1000.0)
    ]
    clock.now = 1002.0
    ended = faults.clear("history")
    assert ended is not None
    assert (ended.alert_id, ended.state, ended.severity, ended.time) == (fired.alert_id, "resolved", "info", 1002.0)
    assert ended.message == "over: still none"
    assert faults.listing() == [] and not faults


def test_ids_differ_by_fault_time_and_daemon_and_not_otherwise() -> None:
    clock = Clock(1.0)
    faults = Faults("a", clock, clock)
    made = [faults.set("device", ""), faults.clear("device"), faults.set("device", ""), faults.set("clock", "")]
    first, _, second, other = [alert.alert_id for alert in made if alert is not None]
    elsewhere = Faults("b", clock, clock).set("device", "")
    again = Faults("a", clock, clock).set("device", "other words")
    later = Faults("a", Clock(2.0), Clock(2.0)).set("device", "")
    assert elsewhere and again and later
    assert again.alert_id == first
    assert len({first, second, other, elsewhere.alert_id, later.alert_id}) == 5


def test_what_a_former_process_left_firing_goes_on_or_ends() -> None:
    before = Faults("a", Clock(1.0), Clock(1.0))
    left = [before.set(name, f"{name} is bad") for name in ("history", "device")]
    bodies = [alert.to_json() for alert in left if alert is not None]
    faults = Faults("a", Clock(9.0), Clock(9.0))
    faults.restore([*bodies, {**bodies[0], "rule": "daemon_of_another_version"}])
    assert faults.set("history", "bad again") is None, "it was on all the time"
    ended = faults.settle()
    assert [(alert.rule, alert.alert_id, alert.state) for alert in ended] == [
        ("daemon_device", bodies[1]["alert_id"], "resolved")
    ]
    assert [fault["name"] for fault in faults.listing()] == ["history"] and faults.settle() == []
    resolved = faults.clear("history")
    assert resolved is not None and resolved.alert_id == bodies[0]["alert_id"]


def test_what_happened_is_over_when_it_does_not_happen_again() -> None:
    clock, wall = Clock(0.0), Clock(1e9)
    faults = Faults("a", wall, clock)
    lasts = KINDS["measure"].lasts_seconds
    assert lasts is not None and KINDS["history"].lasts_seconds is None
    faults.set("history", "full")
    faults.set("measure", "too large")
    clock.now, wall.now = lasts - 1, 0.0  # set back by decades: a minute stays a minute
    assert faults.expire() == []
    faults.set("measure", "too large again")
    clock.now = 2 * lasts - 2
    assert faults.expire() == []
    clock.now = 2 * lasts
    assert [(alert.rule, alert.state) for alert in faults.expire()] == [("daemon_measure", "resolved")]
    assert [fault["name"] for fault in faults.listing()] == ["history"]


def test_follow_sets_and_clears() -> None:
    faults = Faults("a", Clock(1.0), Clock(1.0))
    states = [alert and alert.state for alert in (faults.follow("clock", text) for text in (None, "x", "y", None))]
    assert states == [None, "firing", None, "resolved"]


def test_every_kind_has_a_severity_and_advice() -> None:
    assert all(kind.severity in SEVERITIES and kind.advice.endswith(".") for kind in KINDS.values())


def test_a_jump_of_the_clock_is_a_fault_for_a_minute_and_a_drift_is_none() -> None:
    wall, monotonic = Clock(1_000_000.0), Clock(50.0)
    watch = ClockWatch(wall, monotonic)

    def passes(seconds: float, jump: float = 0.0) -> str | None:
        monotonic.now += seconds
        wall.now += seconds + jump
        return watch.check()

    assert [passes(1.0, jump=4.9) for _ in range(100)] == [None] * 100
    text = passes(1.0, jump=-3600.0)
    assert text is not None and "jumped by -3600.0 s" in text
    assert passes(CLOCK_FAULT_SECONDS - 1) == text
    forth = passes(0.5, jump=3600.0)
    assert forth is not None and "+3600.0 s" in forth
    assert passes(CLOCK_FAULT_SECONDS - 1) == forth and passes(1.5) is None
