"""One alert for a run that lost processes, and its end."""

import json
from itertools import count
from typing import Any

from rankd.records import Alert
from rankd.trainers import Gone, Trainers
from rankd.trainers.gone import GRACE_SECONDS, MAX_LISTED


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


def job(num_processes: int) -> Trainers:
    trainers = Trainers()
    for process in range(num_processes):
        trainers.greeted(session(process), "r", process, num_processes, 0.0)
        trainers.pushed(session(process), 10 + process)
    return trainers


def absences(origin: str = "daemon") -> Gone:
    seconds = count(1000)
    return Gone(origin, lambda: float(next(seconds)))


def only(alerts: list[Alert]) -> dict[str, Any]:
    (alert,) = alerts
    body: dict[str, Any] = json.loads(json.dumps(alert.to_json()))
    return body


def test_a_trainer_that_is_killed_is_told_of_once_and_again_when_it_is_back() -> None:
    trainers, gone = job(1), absences()
    trainers.lost(session(0), "its connection broke", 100.0)
    assert gone.look(trainers, 100.0 + GRACE_SECONDS - 0.1) == [], "it may be back in a moment"
    fired = only(gone.look(trainers, 100.0 + GRACE_SECONDS))
    assert (fired["rule"], fired["severity"], fired["state"], fired["layer"]) == (
        "trainer_gone",
        "info",
        "firing",
        None,
    )
    assert (fired["run"], fired["step"], fired["processes"]) == ("r", 10, [0])
    assert "its connection broke" in fired["message"] and "10" in fired["message"]
    assert gone.look(trainers, 1000.0) == []
    trainers.greeted(session(9), "r", 0, 1, 2000.0)
    ended = only(gone.look(trainers, 2000.0))
    assert (ended["state"], ended["alert_id"]) == ("resolved", fired["alert_id"])
    assert gone.look(trainers, 2001.0) == []


def test_a_job_that_is_killed_is_one_alert() -> None:
    trainers, gone = job(64), absences()
    for process in range(60):
        trainers.lost(session(process), "its connection broke", 100.0 + process / 10)
    fired = only(gone.look(trainers, 100.0 + GRACE_SECONDS))
    assert fired["processes"] == list(range(60)) and fired["step"] == 69
    assert fired["message"].startswith("processes 0, 1, 2, 3,") and "of 64 are gone" in fired["message"]
    trainers.lost(session(60), "its connection broke", 150.0)
    assert gone.look(trainers, 200.0) == [], "not for each process"
    for process in range(59):
        trainers.greeted(session(100 + process), "r", process, 64, 300.0)
    assert gone.look(trainers, 300.0) == [], "process 59 is not back"
    trainers.greeted(session(159), "r", 59, 64, 301.0)
    ended, again = gone.look(trainers, 301.0)
    assert (ended.state, ended.alert_id) == ("resolved", fired["alert_id"])
    assert (again.state, again.processes) == ("firing", (60,)), "which nobody was told of"


def test_two_jobs_are_two_alerts_and_an_alert_is_short() -> None:
    trainers, gone = job(MAX_LISTED + 10), absences()
    trainers.greeted(session(5000), "other", 0, 1, 0.0)
    trainers.pushed(session(5000), 1)
    for number in (*range(MAX_LISTED + 10), 5000):
        trainers.lost(session(number), "its connection broke", 100.0)
    fired = {alert.run: alert for alert in gone.look(trainers, 200.0)}
    assert set(fired) == {"r", "other"} and fired["r"].alert_id != fired["other"].alert_id
    assert len(json.dumps(fired["r"].to_json())) < 4096


def test_a_job_that_comes_back_smaller_has_all_its_processes() -> None:
    trainers, gone = job(4), absences()
    for process in range(4):
        trainers.lost(session(process), "its connection broke", 100.0)
    assert only(gone.look(trainers, 200.0))["processes"] == [0, 1, 2, 3]
    trainers.greeted(session(10), "r", 0, 2, 300.0)
    assert gone.look(trainers, 300.0) == []
    trainers.greeted(session(11), "r", 1, 2, 300.0)
    assert only(gone.look(trainers, 300.0))["state"] == "resolved"


def test_a_daemon_that_starts_again_misses_nobody_of_its_last_life_but_ends_what_it_said() -> None:
    trainers, gone = job(3), absences()
    trainers.lost(session(1), "its connection broke", 100.0)
    fired = only(gone.look(trainers, 200.0))
    again, roll = absences("another"), Trainers()
    again.restore([fired, {"rule": "zero", "state": "firing", "run": "r", "alert_id": "z"}])
    assert again.look(roll, 0.0) == []
    for process in (0, 2):
        roll.greeted(session(process), "r", process, 3, 1.0)
    assert again.look(roll, 100.0) == [], "process 1 is not back"
    roll.greeted(session(7), "r", 1, 3, 101.0)
    ended = only(again.look(roll, 101.0))
    assert (ended["state"], ended["alert_id"]) == ("resolved", fired["alert_id"])


def test_a_run_that_is_forgotten_ends_without_a_word() -> None:
    trainers, gone = job(1), absences()
    trainers.lost(session(0), "its connection broke", 100.0)
    assert len(gone.look(trainers, 200.0)) == 1
    trainers.forget("r")
    gone.forget("r")
    assert gone.look(trainers, 300.0) == []


def test_one_that_was_back_and_said_bye_between_two_looks_ends_the_alert() -> None:
    """As a `rankd sync` with little left to ship."""
    trainers, gone = job(1), absences()
    trainers.lost(session(0), "its connection broke", 100.0)
    (fired,) = gone.look(trainers, 100.0 + GRACE_SECONDS)
    trainers.greeted(session(0), "r", 0, 1, 200.0)
    trainers.left(session(0))
    (ended,) = gone.look(trainers, 201.0)
    assert (ended.state, ended.alert_id) == ("resolved", fired.alert_id)
    assert trainers.take_left() == []


def test_one_that_was_back_and_went_without_a_word_again_does_not_end_the_alert() -> None:
    trainers, gone = job(1), absences()
    trainers.lost(session(0), "its connection broke", 100.0)
    assert len(gone.look(trainers, 100.0 + GRACE_SECONDS)) == 1
    trainers.greeted(session(9), "r", 0, 1, 200.0)
    trainers.lost(session(9), "its connection broke", 200.5)
    assert gone.look(trainers, 201.0) == []
