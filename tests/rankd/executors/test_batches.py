"""Queueing, on the CPU: it is a device as another. What only a GPU does is in test_solver.py."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import pytest
import torch
from waiting import until
from works import CPU, no_fault, untimed, work

from rankd.executors import MeasureError, Part, Work
from rankd.executors.batches import SLOTS_PER_DEVICE, BatchExecutor
from rankd.executors.scheduling import MAX_BATCH
from rankd.executors.solver import NotHereError, OnFault, Outcome, Solver
from rankd.executors.work import Task
from rankd.records import Tier
from rankd.weights import DEFAULT_SETTINGS

SECONDS = 60


class Gated(BatchExecutor):
    """Its solvers wait to be let in, and note what they were given."""

    def __init__(self, devices: Sequence[torch.device], on_fault: OnFault = no_fault) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Semaphore(0)
        super().__init__(devices, on_fault, DEFAULT_SETTINGS)
        for lane in self._lanes:
            self._let_in(lane.solver)

    def _let_in(self, solver: Solver) -> None:
        try_all = solver.try_all

        def gated(tasks: Sequence[Task]) -> list[Outcome]:
            self.batches.append([task.snapshot.layer for task in tasks if isinstance(task, Work)])
            self.gate.acquire()
            return try_all(tasks)

        solver.try_all = gated  # type: ignore[method-assign]


@pytest.fixture
def one() -> Iterator[Gated]:
    """With one device, which is busy with "first"."""
    executor = Gated([CPU])
    executor.submit(work(torch.eye(2), "first"))
    until(lambda: executor.batches)
    yield executor
    executor.gate.release(100)
    executor.close()


def layers_of(futures: Sequence[Future[list[Part]]]) -> list[str]:
    return [future.result(SECONDS)[-1].layer for future in futures]


def test_what_waits_is_taken_at_once_and_in_order(one: Gated) -> None:
    names = [f"w{i}" for i in range(MAX_BATCH + 5)]
    futures = [one.submit(work(torch.eye(2), name)) for name in names]
    assert len(one.batches) == 1, "none while it is busy"
    one.gate.release(3)
    assert layers_of(futures) == names
    assert one.batches[1:] == [names[:MAX_BATCH], names[MAX_BATCH:]]


def test_a_batch_is_of_one_tier_shape_and_dtype_those_of_the_oldest(one: Gated) -> None:
    tiers: list[Tier] = ["norms", "exact", "norms", "estimate", "exact"]
    futures = [one.submit(work(torch.eye(4), f"{i}", tier)) for i, tier in enumerate(tiers)]
    for name, odd in (("wide", torch.ones(4, 5)), ("double", torch.eye(4).double())):
        futures.append(one.submit(work(odd, name, "norms")))
    one.gate.release(6)
    assert layers_of(futures) == ["0", "1", "2", "3", "4", "wide", "double"]
    assert one.batches[1:] == [["0", "2"], ["1", "4"], ["3"], ["wide"], ["double"]]


def test_one_that_fails_does_not_fail_its_batch_mates(one: Gated) -> None:
    good, bad = work(torch.eye(2), "good"), work(torch.eye(2), "bad")
    broken = Work(type(bad.snapshot)("r", "bad", 1, (2, 2), "float32", "", bad.snapshot.data[:3]))
    futures = [one.submit(item) for item in (good, broken, good)]
    one.gate.release(2)
    assert isinstance(futures[1].exception(SECONDS), ValueError)
    assert layers_of([futures[0], futures[2]]) == ["good", "good"] and one.batches[1] == ["good", "bad", "good"]


def test_a_mistake_of_ours_is_in_all_futures_and_ends_no_thread(one: Gated) -> None:
    good, once = one._lanes[0].solver.try_all, [SystemExit("ours")]

    def fails(tasks: Sequence[Task]) -> list[Outcome]:
        if once:
            raise once.pop()
        return good(tasks)

    one._lanes[0].solver.try_all = fails  # type: ignore[method-assign]
    one.gate.release(2)
    future = one.submit(work(torch.eye(2)))
    assert isinstance(future.exception(SECONDS), RuntimeError) and "ours" in str(future.exception())
    assert layers_of([one.submit(work(torch.eye(2), "next"))]) == ["next"]


def test_several_devices_share_what_waits() -> None:
    executor = Gated([CPU, CPU, CPU])
    assert (executor.num_slots, executor.num_workers) == (3 * SLOTS_PER_DEVICE["cpu"], 3)
    busy = []
    for number in range(3):
        busy.append(executor.submit(work(torch.eye(2), f"{number}")))
        until(lambda so_many=number: len(executor.batches) > so_many)
    assert executor.batches == [["0"], ["1"], ["2"]], "none waits for the other"
    waiting = [executor.submit(work(torch.eye(2), "late")) for _ in range(6)]
    executor.gate.release(1)
    until(lambda: len(executor.batches) > 3)
    assert executor.batches[3] == ["late", "late"] and sum(future.done() for future in busy) == 1, "a third of them"
    executor.gate.release(100)
    assert layers_of([*busy, *waiting]) == ["0", "1", "2", *["late"] * 6]
    executor.close()


def absent_gpus(number: int) -> list[torch.device]:
    """They fail as one that is lost does: by an error of torch's in the midst of measuring."""
    return [torch.device("cuda", torch.cuda.device_count() + place) for place in range(number)]


def test_devices_that_are_lost_leave_what_waits_to_the_others_and_the_last_to_the_cpu() -> None:
    absent = absent_gpus(3)
    seen: list[str] = []
    executor = Gated(absent, lambda fault, text: seen.append(f"{fault}: {text}"))
    assert (executor.device, executor.devices) == (absent[0], tuple(absent))
    items = [work(torch.randn(4, 3), f"w{i}") for i in range(40)]
    executor.gate.release(1000)
    futures = [executor.submit(item) for item in items]
    assert layers_of(futures) == [f"w{i}" for i in range(40)]
    rounds = 0
    while executor.device != CPU:  # whoever takes it loses its device, and does not take again
        layers_of([executor.submit(items[0])])
        rounds += 1
        assert rounds < 10
    assert len(seen) == 3 and all(f"device: {device} failed" in "".join(seen) for device in absent)
    assert seen[-1].endswith("measuring goes on on cpu") and executor.devices == (CPU,)
    reference = BatchExecutor([CPU], no_fault, DEFAULT_SETTINGS)
    again = executor.submit(items[3]).result(SECONDS)
    assert untimed(again) == untimed(reference.submit(items[3]).result(SECONDS)) and len(seen) == 3
    for each in (executor, reference):
        each.close()


def test_what_a_lost_device_was_at_goes_to_one_that_is_left() -> None:
    (absent,) = absent_gpus(1)
    seen: list[str] = []
    executor = BatchExecutor([absent, CPU], lambda fault, text: seen.append(text), DEFAULT_SETTINGS)
    while not seen:  # until the absent one has taken something
        futures = [executor.submit(work(torch.eye(n % 7 + 2), f"{n}")) for n in range(40)]
        assert layers_of(futures) == [f"{n}" for n in range(40)], "each of them, once"
    assert seen[0].startswith(f"{absent} failed: ") and seen[0].endswith("measuring goes on on cpu")
    assert executor.devices == (CPU,)
    executor.close()


def test_what_fits_on_no_device_goes_from_one_to_the_next_and_then_to_the_cpu() -> None:
    executor = Gated([CPU, CPU])
    tried: list[int] = []
    for lane in executor._lanes:

        def full(tasks: Sequence[Task], place: int = lane.place) -> list[Outcome]:
            tried.append(place)
            return [NotHereError("memory") for _ in tasks]

        lane.solver.try_all = full  # type: ignore[method-assign]
    assert layers_of([executor.submit(work(torch.eye(3), "wide"))]) == ["wide"]
    assert sorted(tried) == [0, 1]
    executor.close()


def test_what_brings_down_whoever_measures_it_is_given_up_after_two_devices_and_the_rest() -> None:
    executor = Gated([CPU, CPU, CPU])
    tried: list[object] = []
    for solver in (*(lane.solver for lane in executor._lanes), executor._rest):

        def lost(tasks: Sequence[Task], solver: object = solver) -> list[Outcome]:
            tried.append(solver)
            return [NotHereError("lost") for _ in tasks]

        solver.try_all = lost  # type: ignore[method-assign]
    error = executor.submit(work(torch.eye(3), "bomb")).exception(SECONDS)
    assert isinstance(error, MeasureError) and "the process that measured it ended" in str(error)
    assert len(tried) == 3 and tried[-1] is executor._rest
    executor.close()


def test_what_a_lost_device_had_not_begun_does_not_count_against_it() -> None:
    executor = Gated([CPU, CPU])
    gone = [NotHereError("gone")] * 5
    for lane in executor._lanes:
        good = lane.solver.try_all

        def once_gone(tasks: Sequence[Task], good: Callable[..., list[Outcome]] = good) -> list[Outcome]:
            return [gone.pop() for _ in tasks] if gone else good(tasks)

        lane.solver.try_all = once_gone  # type: ignore[method-assign]
    executor.gate.release(10)
    assert layers_of([executor.submit(work(torch.eye(3), "late"))]) == ["late"] and not gone
    assert len(executor.batches) == 1, "a device had it, not the CPU"
    executor.close()


def test_where_no_method_converges_on_a_device_the_cpu_is_next() -> None:
    executor = Gated([CPU, CPU])
    tried: list[int] = []
    for lane in executor._lanes:

        def unsolved(tasks: Sequence[Task], place: int = lane.place) -> list[Outcome]:
            tried.append(place)
            return [NotHereError("unsolved") for _ in tasks]

        lane.solver.try_all = unsolved  # type: ignore[method-assign]
    assert layers_of([executor.submit(work(torch.eye(3), "odd"))]) == ["odd"] and len(tried) == 1
    executor.close()


def test_close_cancels_what_has_begun_on_a_device_without_room() -> None:
    executor = Gated([CPU])
    entered, leave = threading.Event(), threading.Event()

    def full(tasks: Sequence[Task]) -> list[Outcome]:
        entered.set()
        assert leave.wait(SECONDS)
        return [NotHereError("memory") for _ in tasks]

    executor._lanes[0].solver.try_all = full  # type: ignore[method-assign]
    future = executor.submit(work(torch.eye(2)))
    assert entered.wait(SECONDS)
    executor.close()
    leave.set()
    assert isinstance(future.exception(SECONDS), CancelledError)


LOST_BOTH = """
import torch
from works import work
from rankd.executors.batches import BatchExecutor
from rankd.weights import DEFAULT_SETTINGS

seen = []
gpus = [torch.device("cuda", place) for place in (0, 1)]
executor = BatchExecutor(gpus, lambda name, text: seen.append(text), DEFAULT_SETTINGS)
item = work(torch.diag(torch.tensor([3.0, 2.0])), tier="norms")

def measure():
    (part,) = executor.submit(item).result(60)
    assert abs(part.reading.metrics["spectral_norm"] - 3) < 1e-3
    return part.reading.method

assert {measure() for _ in range(20)} == {"golub_kahan_cuda"} and not seen
assert all(torch.cuda.memory_stats(gpu)["allocation.all.allocated"] for gpu in gpus), "both had some of them"
torch.zeros(1, device=gpus[0])[torch.tensor([5], device=gpus[0])]  # an assertion on the device: its context is dead
methods = [measure() for _ in range(200)]
assert sorted(text[:14] for text in seen) == ["cuda:0 failed:", "cuda:1 failed:"], seen
assert methods[-1] == "golub_kahan_cpu" and executor.device.type == "cpu"
executor.close()
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
def test_gpus_whose_contexts_died_leave_their_work_to_the_cpu() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LOST_BOTH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_close_drops_what_has_not_begun_and_takes_no_more(one: Gated) -> None:
    begun = one.submit(work(torch.eye(2)))
    one.gate.release(1)
    until(lambda: len(one.batches) == 2)
    waiting = one.submit(work(torch.eye(2)))
    one.close()
    late = one.submit(work(torch.eye(2)))
    one.gate.release(5)
    assert begun.result(SECONDS)
    for future in (waiting, late):
        with pytest.raises(CancelledError):
            future.result(SECONDS)
    assert len(one.batches) == 2


def test_what_is_cancelled_while_it_waits_is_not_measured(one: Gated) -> None:
    cancelled, kept = one.submit(work(torch.eye(2), "cancelled")), one.submit(work(torch.eye(2), "kept"))
    assert cancelled.cancel()
    one.gate.release(2)
    wait([kept], SECONDS)
    assert one.batches[1] == ["kept"]
