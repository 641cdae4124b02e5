"""Who is here, and who is missed."""

from rankd.trainers import Stats, Trainers
from rankd.trainers.roll import MAX_GONE, MAX_RUNS_TOLD


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


def job(num_processes: int, run: str = "r") -> Trainers:
    trainers = Trainers()
    for process in range(num_processes):
        trainers.greeted(session(process), run, process, num_processes, 0.0)
        trainers.pushed(session(process), 10)
    return trainers


def gone(trainers: Trainers) -> list[int]:
    return [trainer.process_rank for trainer in trainers.gone()]


def test_who_says_bye_is_not_missed_and_who_breaks_off_is() -> None:
    trainers = job(3)
    trainers.left(session(0))
    trainers.lost(session(1), "its connection broke", 5.0)
    trainers.lost(session(1), "again", 6.0)
    assert [trainer.process_rank for trainer in trainers.of("r")] == [2]
    assert gone(trainers) == [1]
    missed = trainers.get(session(1))
    assert missed is not None and (missed.gone_at, missed.why) == (5.0, "its connection broke")
    assert trainers.get(session(0)) is None


def test_who_never_pushed_is_not_missed() -> None:
    trainers = Trainers()
    trainers.greeted(session(1), "r", 0, 1, 0.0)
    trainers.lost(session(1), "its connection broke", 5.0)
    assert gone(trainers) == [] and list(trainers.runs()) == []


def test_a_session_that_comes_back_goes_on_where_it_was() -> None:
    trainers = job(2)
    trainers.told(session(1), Stats(step=12), 4.0)
    trainers.lost(session(1), "", 5.0)
    trainers.greeted(session(1), "r", 1, 2, 6.0)
    assert gone(trainers) == []
    back = trainers.get(session(1))
    assert back is not None and back.newest_step == 12 and back.gone_at is None


def test_a_process_that_is_started_again_takes_the_place_of_the_one_that_is_missed() -> None:
    trainers = job(3)
    for process in range(3):
        trainers.lost(session(process), "", 5.0)
    trainers.greeted(session(100), "r", 1, 3, 9.0)
    assert gone(trainers) == [0, 2]
    trainers.greeted(session(101), "another", 0, 3, 9.0)
    assert gone(trainers) == [0, 2], "of another run"
    trainers.greeted(session(102), "r", 0, 2, 9.0)
    assert gone(trainers) == [], "the job has no process 2 any more"


def test_so_many_are_remembered_and_no_more() -> None:
    trainers = job(MAX_GONE + 5)
    for process in range(MAX_GONE + 5):
        trainers.lost(session(process), "", float(process))
    assert gone(trainers) == list(range(5, MAX_GONE + 5))
    trainers.forget("r")
    assert gone(trainers) == []


def test_a_run_is_summed_up_in_a_row() -> None:
    trainers = job(3)
    trainers.lost(session(2), "", 5.0)
    told = Stats(step=20, share=0.01, max_overhead=0.005, every_steps=8, num_dropped=2, path="memfd", device_bytes=7)
    trainers.told(session(0), told, 5.0)
    trainers.told(session(1), Stats(step=26, share=0.004, num_dropped=5, num_never=1, path="zeromq"), 5.0)
    assert trainers.summary() == [
        {
            **{"run": "r", "world_size": 3, "num_here": 2, "num_gone": 1, "step": 26, "steps_apart": 6},
            **{"paths": ["memfd", "zeromq"], "share": 0.01, "max_overhead": 0.005, "every_steps": 8},
            **{"num_never": 1, "num_dropped": 7, "device_bytes": 7},
        }
    ]
    rows = trainers.describe()
    assert [(row["process_rank"], row["step"], row["gone"]) for row in rows] == [
        (0, 20, False),
        (1, 26, False),
        (2, 10, True),
    ]


def test_a_summary_is_bounded() -> None:
    trainers = Trainers()
    for number in range(MAX_RUNS_TOLD + 3):
        trainers.greeted(session(number), f"r{number}", 0, 1, 0.0)
    rows = trainers.summary()
    assert len(rows) == MAX_RUNS_TOLD and rows[-1]["run"] == f"r{MAX_RUNS_TOLD + 2}"
