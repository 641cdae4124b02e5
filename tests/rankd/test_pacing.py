"""One plan for a job: the same for all, from a step that nobody has reached, and no denser than it can bear."""

from collections.abc import Callable
from typing import Any

import pytest

from rankd.pacing import (
    CALM_SECONDS,
    JOIN_HEARTBEATS,
    LAGGARD_SECONDS,
    MAX_EVERY,
    Pacing,
    every_by_cost,
    first_plan,
    next_shorter,
    round_up,
)
from rankd.trainers import Stats, Trainers
from rankd_client.plan import Schedule
from rankd_client.wire import MAX_STEP, Plan

HEARTBEAT = 1.0
STEP_SECONDS = 0.1


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Job:
    """Processes that tell what they do once a heartbeat, and the daemon that paces them."""

    def __init__(self, num_processes: int, **told: Any) -> None:
        self.trainers, self.pacing = Trainers(), Pacing(HEARTBEAT)
        self.num_processes, self.now = num_processes, 0.0
        self.steps = [0] * num_processes
        self.told: dict[str, Any] = {"step_seconds": STEP_SECONDS, **told}
        for number in range(num_processes):
            self.join(number)

    def join(self, number: int) -> None:
        self.trainers.greeted(session(number), "r", number, self.num_processes, self.now)
        self.trainers.pushed(session(number), self.steps[number])

    def beat(self, num_whole: int = 0, num_lost: int = 0, num_displaced: int = 0, steps: int = 10) -> Plan | None:
        """One heartbeat: so many steps, and what became of the layers of the newest one."""
        self.now += HEARTBEAT
        for number in range(self.num_processes):
            self.steps[number] += steps
            self.tell(number)
        for what, times in ("whole", num_whole), ("lost", num_lost), ("displaced", num_displaced):
            for _ in range(times):
                getattr(self.pacing, what)("r", max(self.steps))
        return self.pacing.review(self.trainers, self.now).get("r")

    def tell(self, number: int, **more: Any) -> None:
        self.trainers.pushed(session(number), self.steps[number])
        stats = Stats(step=self.steps[number], **{**self.told, **more})
        self.trainers.told(session(number), stats, self.now)

    def until_plan(self, **outcomes: int) -> Plan:
        for _ in range(200):
            if (plan := self.beat(**outcomes)) is not None:
                return plan
        raise AssertionError("no plan")


def test_intervals_are_of_one_row() -> None:
    assert [round_up(every) for every in (0, 1, 1.01, 2.5, 3.1, 5, 7, 9, 13, 17, 25)] == [
        *(1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    ]
    row = [round_up(every) for every in range(1, 5000)]
    assert all(next_shorter(every) == max([n for n in row if n < every], default=1) for every in set(row))


@pytest.mark.parametrize(
    ("told", "every"),
    [
        ({}, 0),
        ({"push_seconds": 0.02, "step_seconds": 0.1, "max_overhead": None}, 0),
        ({"push_seconds": 0.0001, "step_seconds": 0.1, "max_overhead": 0.005}, 0),
        ({"push_seconds": 0.0021, "step_seconds": 0.1, "max_overhead": 0.005}, 6),
        ({"push_seconds": 1e9, "step_seconds": 1e-300, "max_overhead": 0.005}, MAX_EVERY),
        ({"push_seconds": 1.0, "step_seconds": 1e-200, "max_overhead": 1e-200}, MAX_EVERY),
        ({"push_seconds": 1.0, "step_seconds": 0.0, "max_overhead": 0.005}, 0),
        ({"push_seconds": 1.0, "step_seconds": 1.0, "max_overhead": 0.0}, MAX_EVERY),
    ],
)
def test_the_interval_keeps_the_cost_within_its_bound(told: dict[str, Any], every: int) -> None:
    job = Job(1, **told)
    job.beat()
    assert every_by_cost(job.trainers.of("r")) == every


def test_the_dearest_process_decides() -> None:
    job = Job(4, push_seconds=0.001, max_overhead=0.01)
    for _ in range(5):
        assert job.beat() is None
    for number in range(4):
        job.tell(number, push_seconds=0.001 * (1 + number))
    assert job.pacing.review(job.trainers, job.now) == {}, "once may be a single push that was held up"
    plan = job.pacing.review(job.trainers, job.now)["r"]
    assert plan.every_steps == 4, "4 ms of each 400 ms"


def test_a_plan_holds_from_a_step_that_all_hear_of_before_they_get_there() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01)
    job.steps[1] = 7
    plan = job.until_plan()
    # Process 1 is 7 steps ahead, and makes 10 steps a heartbeat.
    assert plan.every_steps == 12
    assert HEARTBEAT / STEP_SECONDS <= plan.first_step - max(job.steps) <= 2 * HEARTBEAT / STEP_SECONDS
    assert job.pacing.plan("r", 2) == plan, "who comes later hears the same"
    assert job.pacing.plan("r", 1) == Plan(), "who is alone paces itself"
    assert job.pacing.plan("another", 2) == Plan()


def test_the_first_plan_comes_with_what_is_told_first_but_not_of_a_push_that_found_nothing_warm() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01, num_pushes=1)
    assert [job.beat() for _ in range(5)] == [None] * 5
    job = Job(2, push_seconds=0.01, max_overhead=0.01, num_pushes=10)
    assert (plan := job.beat()) is not None and plan.every_steps == 12


def test_what_is_known_of_the_steps_is_as_old_as_it_is() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01)
    for number in range(2):
        job.tell(number)
    plan = job.pacing.review(job.trainers, job.now + HEARTBEAT)["r"]
    assert plan.first_step >= max(job.steps) + 2 * HEARTBEAT / STEP_SECONDS


def test_who_alone_has_something_to_send_is_not_given_time_to_hear() -> None:
    """In data parallel training process 0 pushes for all, and the others have no connection."""
    job = Job(1, push_seconds=0.01, max_overhead=0.01)
    job.trainers.greeted(session(0), "r", 0, 8, 0.0)
    job.trainers.pushed(session(0), 0)
    assert job.until_plan().first_step <= max(job.steps) + 2


def test_how_fast_the_steps_come_is_seen_where_nobody_tells() -> None:
    job = Job(2)
    job.told = {}
    for _ in range(10):
        job.beat(steps=50)
    plan = job.until_plan(num_whole=10, num_lost=10, steps=50)
    assert plan.first_step >= max(job.steps) + 50


def test_nothing_is_planned_for_one_process_or_for_those_that_never_pushed() -> None:
    job = Job(1, push_seconds=1.0, max_overhead=0.01)
    assert [job.beat(num_lost=20) for _ in range(10)] == [None] * 10
    strangers, pacing = Trainers(), Pacing(HEARTBEAT)
    strangers.greeted(session(1), "r", 0, 8, 0.0)
    strangers.told(session(1), Stats(step=5, push_seconds=1.0, step_seconds=1.0, max_overhead=0.01), 0.0)
    assert pacing.review(strangers, 100.0) == {} and pacing.describe() == {}


def test_losses_back_off_by_two_and_more_where_most_is_lost() -> None:
    for num_lost, every in ((2, 8), (9, 8), (11, 16), (90, 32)):
        job = Job(2, every_steps=4)
        plan = job.until_plan(num_whole=10, num_lost=num_lost)
        assert plan.every_steps == every, f"{num_lost} lost, 10 whole"


def test_once_is_no_overload_and_a_few_layers_tell_nothing() -> None:
    job = Job(2)
    for number in range(30):
        assert job.beat(num_whole=20, num_lost=20 * (number % 2)) is None
    job = Job(2)
    assert [job.beat(num_lost=number % 3 == 0) for number in range(20)] == [None] * 20


def test_a_mailbox_that_drops_most_is_pushed_to_for_nothing() -> None:
    job = Job(2)
    assert [job.beat(num_whole=20, num_displaced=9) for _ in range(20)] == [None] * 20
    assert job.until_plan(num_whole=20, num_displaced=15).every_steps == 2


def test_what_gets_lost_while_processes_join_is_no_overload() -> None:
    job = Job(4)
    for _ in range(10):
        job.trainers.lost(session(3), "", job.now)
        job.join(3)
        assert job.beat(num_lost=50) is None
    for _ in range(int(JOIN_HEARTBEATS) + 10):
        assert job.beat(num_whole=50) is None


def test_it_comes_back_slowly_and_more_slowly_where_that_was_too_soon() -> None:
    job = Job(2)
    first = job.until_plan(num_whole=10, num_lost=25)
    assert first.every_steps == 4
    began = job.now
    assert job.until_plan(num_whole=20).every_steps == 3
    assert CALM_SECONDS <= job.now - began <= CALM_SECONDS + 15
    again = job.until_plan(num_whole=10, num_lost=5)
    assert again.every_steps == 6, "what is in force, times two"
    began = job.now
    assert job.until_plan(num_whole=20).every_steps == 4
    assert job.now - began >= 2 * CALM_SECONDS, "twice as long, because it proved too short"
    plans = [job.until_plan(num_whole=20).every_steps for _ in range(3)]
    assert plans == [3, 2, 0], "until the client's own interval is enough"


def test_a_large_job_begins_sparsely_and_comes_to_its_own_interval_while_all_goes_well() -> None:
    job = Job(64)
    first = job.pacing.plan("r", 64)
    assert first == first_plan(64) == Plan(1, 0, 16), "all processes hear it in their welcome"
    assert [first_plan(size).every_steps for size in (1, 2, 4, 8, 512, 1 << 20)] == [0, 0, 0, 2, 128, MAX_EVERY]
    began = job.now
    assert [job.until_plan(num_whole=20).every_steps for _ in range(4)] == [8, 4, 2, 0]
    assert job.now - began < 60
    again = Job(64)
    assert again.until_plan(num_whole=20).every_steps == 8
    assert again.until_plan(num_whole=20, num_lost=10).every_steps == 16
    began = again.now
    assert again.until_plan(num_whole=20).every_steps == 12
    assert again.now - began >= CALM_SECONDS, "that was the end of the start"


def test_nothing_comes_closer_without_evidence() -> None:
    job = Job(64)
    assert [job.beat() for _ in range(100)] == [None] * 100


def test_costs_that_waver_change_nothing() -> None:
    job = Job(2, push_seconds=0.0031, max_overhead=0.01)
    assert job.until_plan().every_steps == 4
    for number in range(200):
        job.told["push_seconds"] = 0.0021 + 0.0018 * (number % 2)
        assert job.beat(num_whole=10) is None
    job.told["push_seconds"] = 0.0029  # would do with 3 steps, but not clearly
    assert [job.beat(num_whole=10) for _ in range(200)] == [None] * 200
    job.told["push_seconds"] = 0.0015
    assert job.until_plan(num_whole=10).every_steps == 2


def test_the_next_plan_waits_until_the_slowest_has_come_to_the_last_one_but_not_for_a_frozen_one() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01)
    plan = job.until_plan()
    job.told["push_seconds"] = 0.04
    began = job.now
    slow = job.steps[1]
    while (later := job.pacing.review(job.trainers, job.now).get("r")) is None:
        job.now += HEARTBEAT
        job.steps[0] += 10
        job.steps[1] = slow
        job.tell(0)
        job.tell(1)
        assert job.now - began <= LAGGARD_SECONDS + 1
    assert job.now - began >= LAGGARD_SECONDS
    assert (later.plan_id, later.every_steps) == (plan.plan_id + 1, 48)


def test_a_job_that_goes_back_to_a_checkpoint_gets_its_plan_from_there_on() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01)
    job.steps = [5000, 5000]
    plan = job.until_plan()
    assert plan.first_step > 5000
    job.steps = [90, 90]
    again = job.until_plan()
    assert again.every_steps == plan.every_steps
    assert max(job.steps) < again.first_step < 200
    assert again.plan_id > plan.plan_id


def test_a_run_that_is_forgotten_has_no_plan() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01)
    job.until_plan()
    assert job.pacing.describe() == {"r": 12}
    job.pacing.forget("r")
    assert job.pacing.plan("r", 2) == Plan() and job.pacing.describe() == {}


def test_the_last_steps_that_there_are() -> None:
    job = Job(2, push_seconds=0.01, max_overhead=0.01, step_seconds=5e-324)
    job.steps = [MAX_STEP - 20_000, 5]
    assert job.until_plan().first_step == MAX_STEP


@pytest.mark.parametrize("delay", [lambda number: number, lambda number: 3 * number, lambda number: 9])
def test_processes_that_hear_of_a_plan_at_different_steps_push_the_same_ones(delay: Callable[[int], int]) -> None:
    """As long as each hears of it before it gets to its first step."""
    job = Job(4, push_seconds=0.01, max_overhead=0.01)
    plan = job.until_plan()
    newest = max(job.steps)
    schedules = [Schedule(every_steps=2) for _ in range(4)]
    pushed: list[list[int]] = [[] for _ in range(4)]
    for step in range(newest, plan.first_step + 100):
        for number, schedule in enumerate(schedules):
            if step - newest == delay(number):
                schedule.adopt(plan)
            schedule.called(step)
            if schedule.due(step, None, world_size=4):
                pushed[number].append(step)
    assert pushed[0] == pushed[1] == pushed[2] == pushed[3]
    assert [step for step in pushed[0] if step >= plan.first_step] == [
        step for step in range(plan.first_step, plan.first_step + 100) if step % plan.every_steps == 0
    ]


def test_a_process_that_hears_too_late_agrees_from_then_on() -> None:
    plan = Plan(1, 100, 8)
    early, late = Schedule(every_steps=1), Schedule(every_steps=1)
    early.adopt(plan)
    differ = []
    for step in range(90, 300):
        if step == 150:
            late.adopt(plan)
        for schedule in (early, late):
            schedule.called(step)
        if early.due(step, None, world_size=4) != late.due(step, None, world_size=4):
            differ.append(step)
    assert differ and min(differ) >= 100 and max(differ) < 150


def test_who_did_not_hear_a_plan_is_told_again() -> None:
    job = Job(3, push_seconds=0.1, max_overhead=0.25)  # every 4
    plan = job.until_plan()

    def missed(*every: int) -> list[bytes]:
        for number, steps in enumerate(every):
            job.tell(number, every_steps=steps)
        told = list(job.pacing.missed(job.trainers))
        assert all(each == plan for _, each in told)
        return [session for session, _ in told]

    assert missed(1, 1, 1) == []  # none has come to its first step
    job.steps = [plan.first_step] * 3
    assert missed(4, 1, 4) == [session(1)]
    assert missed(4, 4, 8) == [session(2)]  # of the plan before
    assert missed(1, 1, 1) == [session(number) for number in range(3)]
    assert missed(4, 4, 4) == []
    assert missed(100, 100, 100) == []  # the user's own
    job.trainers.greeted(alone := session(9), "r", 0, 1, job.now)
    job.trainers.told(alone, Stats(step=plan.first_step, every_steps=1), job.now)
    assert missed(4, 4, 4) == []  # who is by himself has no plan
