"""Which worker gets what, without Ray."""

from __future__ import annotations

import numpy as np
import pytest

from rankd.executors.ray.dispatch import CALLS_PER_WORKER, MAX_DEATHS, Dispatch, Job, Worker

MEGABYTE = 1 << 20


def job(layer: str, num_bytes: int = 4 * MEGABYTE, tier: str = "exact") -> Job:
    return Job(0, layer, {"tier": tier}, [np.zeros(num_bytes, np.uint8)])


def dispatch(num_workers: int, *jobs: Job, on_gpu: bool = False) -> Dispatch:
    made = Dispatch()
    made.workers += [Worker(on_gpu) for _ in range(num_workers)]
    for one in jobs:
        made.put(one)
    return made


def layers(calls: list[tuple[Worker, list[Job]]]) -> list[list[str]]:
    return [[one.layer for one in jobs] for _, jobs in calls]


def hand_out(of: Dispatch) -> list[tuple[Worker, list[Job]]]:
    calls = []
    while (call := of.next()) is not None:
        calls.append(call)
    return calls


def test_every_worker_has_one_call_at_work_and_one_at_hand_and_the_rest_waits() -> None:
    of = dispatch(2, *(job(f"w{number}") for number in range(9)))
    calls = hand_out(of)
    assert layers(calls) == [["w0"], ["w1"], ["w2"], ["w3"]]
    assert all(len(worker.calls) == CALLS_PER_WORKER for worker in of.workers)
    of.done(*calls[0])
    assert layers(hand_out(of)) == [["w4"]]


def test_a_layer_goes_where_it_was() -> None:
    of = dispatch(3, *map(job, "abc"))
    first = hand_out(of)
    for call in first:
        of.done(*call)
    for name in "cab":
        of.put(job(name))
    again = hand_out(of)
    assert {jobs[0].layer: worker for worker, jobs in again} == {jobs[0].layer: worker for worker, jobs in first}


def test_but_not_where_that_one_is_behind_and_another_is_idle() -> None:
    of = dispatch(2, job("a"))
    ((first, jobs),) = hand_out(of)
    of.done(first, jobs)
    of.put(job("a"))
    of.put(job("a"))
    assert {worker for worker, _ in hand_out(of)} == set(of.workers)


def test_small_ones_of_a_tier_go_together_and_leave_the_others_their_share() -> None:
    small = [job(f"w{number}", MEGABYTE) for number in range(4)]
    assert layers(hand_out(dispatch(1, *small))) == [["w0", "w1", "w2", "w3"]]
    small = [job(f"w{number}", MEGABYTE) for number in range(4)]
    assert layers(hand_out(dispatch(2, *small))) == [["w0", "w1"], ["w2"], ["w3"]]
    mixed = [job("a", 1, "norms"), job("b", 1, "exact"), job("c", 1, "norms")]
    assert layers(hand_out(dispatch(1, *mixed))) == [["a", "c"], ["b"]]
    large = [job("a", 3 * MEGABYTE), job("b", 2 * MEGABYTE)]
    assert layers(hand_out(dispatch(1, *large))) == [["a"], ["b"]]


def test_a_gpu_takes_larger_batches() -> None:
    assert layers(hand_out(dispatch(1, *map(job, "abc"), on_gpu=True))) == [["a", "b", "c"]]


def test_what_a_dead_worker_had_is_first_in_line_each_by_itself() -> None:
    of = dispatch(1, *(job(name, 1) for name in "abc"))
    hand_out(of)
    of.put(job("d"))
    hand_out(of)
    for one in of.workers[0].calls[0]:
        one.where, one.arrays = ("batch", 0), ()
    assert of.lost(of.workers[0]) == [] and of.workers == []
    of.workers.append(Worker(False))
    alone = hand_out(of)
    assert layers(alone) == [["a"], ["b"]]
    assert [one.num_deaths for _, jobs in alone for one in jobs] == [1, 1]


def test_who_only_waited_for_a_dead_worker_is_not_suspected() -> None:
    of = dispatch(1, job("a"), job("b"))
    for _ in range(MAX_DEATHS - 1):
        hand_out(of)
        assert of.lost(of.workers[0]) == []
        of.workers.append(Worker(False))
    hand_out(of)
    assert [one.layer for one in of.lost(of.workers[0])] == ["a"]
    of.workers.append(Worker(False))
    ((_, (left,)),) = hand_out(of)
    assert (left.layer, left.num_deaths) == ("b", 0)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_everything_is_handed_out_once(num_workers: int) -> None:
    generator = np.random.default_rng(num_workers)
    jobs = [job(f"w{number % 20}", int(generator.integers(1, 3 * MEGABYTE))) for number in range(100)]
    of = dispatch(num_workers, *jobs)
    seen: list[Job] = []
    while calls := hand_out(of):
        for number, (worker, taken) in enumerate(calls):
            if number % 7 == 6 and worker in of.workers:
                assert of.lost(worker) == []
                of.workers.append(Worker(False))
            elif worker in of.workers:
                of.done(worker, taken)
                seen += taken
    assert len(seen) == len(set(map(id, seen))) == 100
