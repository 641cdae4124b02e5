"""Real processes, on the CPU: it is a device as another."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import fork_server
import pytest
import torch
from waiting import is_there, until
from works import CPU, measured, no_fault, snapshot, untimed, work

from rankd.executors import MeasureError, Part, Work
from rankd.executors.apart.solver import (
    HANG_SECONDS,
    HANG_TIMES,
    MAX_HANG_SECONDS,
    SolverApart,
    in_processes,
    make_rest,
)
from rankd.executors.batches import BatchExecutor
from rankd.executors.work import SCALED_DTYPES
from rankd.plan.costs import Costs, Size
from rankd.records import Tier
from rankd.weights import DEFAULT_SETTINGS

SECONDS = 60


class Apart(BatchExecutor):
    """One device, with a batch at hand while one is measured."""

    def __init__(self) -> None:
        self.told: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
        self.solver: SolverApart
        super().__init__([CPU], lambda *told: self.told.put(told), DEFAULT_SETTINGS, self._make, self._make_rest)

    def _make(self, device: torch.device, on_fault: object) -> SolverApart:
        self.solver = SolverApart(device, on_fault, DEFAULT_SETTINGS, pauses=(0.5, 1.0), num_threads=2)  # type: ignore[arg-type]
        return self.solver

    def _make_rest(self, device: torch.device, on_fault: object) -> SolverApart:
        self.rest = partial(make_rest, settings=DEFAULT_SETTINGS)(device, on_fault)  # type: ignore[arg-type]
        return self.rest


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    executor = Apart()
    yield executor
    pid, futures = process_of(executor), stopped_with_work(executor)
    executor.close()
    assert not is_there(pid), "one that is at work ends too"
    assert all(isinstance(future.exception(SECONDS), CancelledError) for future in futures)
    assert executor.submit(work(torch.eye(2))).cancelled() and executor.told.empty()


def process_of(executor: Apart) -> int:
    """Of one that is ready: it has answered."""
    executor.submit(work(torch.eye(2))).result(SECONDS)
    assert executor.solver.pid is not None
    return executor.solver.pid


@pytest.mark.parametrize("tier", ["norms", "estimate", "exact"])
def test_the_numbers_are_those_of_this_process(apart: Apart, tier: Tier) -> None:
    generator = torch.Generator().manual_seed(2)
    plain = [work(torch.randn(150, 160, generator=generator).bfloat16(), f"{tier}{i}", tier) for i in range(3)]
    fused = work(torch.randn(96, 32, generator=generator), "h.c_attn.weight", tier)
    experts = work(torch.randn(3, 140, 130, generator=generator), "experts", tier)
    b = snapshot(torch.randn(40, 4, generator=generator), "x.lora_B")
    pair = Work(snapshot(torch.randn(4, 30, generator=generator), "x.lora_A"), tier, b)
    odd = work(torch.full((5, 4), float("nan")), "odd", tier)
    items = [*plain, fused, experts, pair, odd]
    for item, future in [(item, apart.submit(item)) for item in items]:
        assert untimed(future.result(SECONDS)) == untimed(measured("inline", item)), item.snapshot.layer
    assert (apart.num_workers, apart.devices, apart.device) == (1, (CPU,), CPU)


def test_every_dtype_arrives_as_it_was_sent(apart: Apart) -> None:
    items = [work(torch.randn(7, 6).to(dtype), str(dtype)) for dtype in (torch.float64, torch.float32, torch.float16)]
    for dtype in SCALED_DTYPES:
        rows = torch.randint(1, 100, (7, 6 + 4), dtype=torch.uint8)
        rows[:, 6:] = torch.rand(7, 1).view(torch.uint8)
        of = snapshot(rows)
        items.append(Work(type(of)("r", dtype, 1, (7, 6), dtype, "float32", of.data)))
    for item, future in [(item, apart.submit(item)) for item in items]:
        assert untimed(future.result(SECONDS)) == untimed(measured("inline", item)), item.snapshot.layer


def test_a_mistake_of_ours_is_in_its_future_alone(apart: Apart) -> None:
    good, of = work(torch.eye(2), "good"), snapshot(torch.eye(2))
    broken = Work(type(of)("r", "bad", 1, (2, 2), "float32", "", of.data[:3]))
    futures = [apart.submit(item) for item in (good, broken, good)]
    assert isinstance(futures[1].exception(SECONDS), RuntimeError)
    assert "in another process: ValueError: " in str(futures[1].exception())
    assert [future.result(SECONDS)[-1].layer for future in (futures[0], futures[2])] == ["good", "good"]


def test_the_process_keeps_to_its_place(apart: Apart) -> None:
    """Behind the training, off the daemon's stdout, sooner ended for want of memory than others, deaf to what is meant
    for the daemon."""
    pid = process_of(apart)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 10
    theirs = Path(f"/proc/{pid}/fd")
    assert (theirs / "1").readlink() == (theirs / "2").readlink(), "which are two while tests are run"
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 500
    assert os.getpgid(pid) != os.getpgid(0)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, signum)
    assert process_of(apart) == pid


def stopped_with_work(executor: Apart) -> list[Future[list[Part]]]:
    """Its process has been handed one and stands still; another one is at hand."""
    os.kill(process_of(executor), signal.SIGSTOP)
    futures = []
    for name in ("at", "at hand"):
        futures.append(executor.submit(work(torch.diag(torch.tensor([3.0, 2.0])), name)))
        until(lambda: not executor._waiting)
    return futures


def test_what_a_killed_process_was_at_is_measured_and_the_process_comes_again(apart: Apart) -> None:
    pid = process_of(apart)
    futures = stopped_with_work(apart)
    os.kill(pid, signal.SIGKILL)
    name, text = apart.told.get(timeout=SECONDS)
    words = "measuring on the CPU failed: its process was ended by SIGKILL, perhaps for want of memory; "
    assert name == "device" and text is not None and text.startswith(f"{words}it is started again in ")
    assert text.endswith("; measuring goes on in one that takes its place")
    for future in futures:
        assert future.result(SECONDS)[-1].reading.metrics["spectral_norm"] == pytest.approx(3)
    assert apart.told.get(timeout=SECONDS) == ("device", None)
    rest, again = apart.rest.pid, process_of(apart)
    assert again not in (pid, rest) and apart.told.empty()
    assert not is_there(pid)


def test_a_process_that_hangs_is_ended_as_if_it_had_died(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = process_of(apart)
    with monkeypatch.context() as patch:
        patch.setattr("rankd.executors.apart.solver.HANG_SECONDS", 1.0)
        futures = stopped_with_work(apart)
        name, text = apart.told.get(timeout=SECONDS)
    words = "measuring on the CPU failed: its process gave no answer within 1 s and is ended; it is started again in "
    assert name == "device" and text is not None and text.startswith(words)
    for future in futures:
        assert future.result(SECONDS)[-1].reading.metrics["spectral_norm"] == pytest.approx(3)
    assert apart.told.get(timeout=SECONDS) == ("device", None)
    assert not is_there(pid) and process_of(apart) != pid and apart.told.empty()


def test_what_hangs_every_process_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    told: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    executor = in_processes([CPU, CPU], lambda *of: told.put(of), DEFAULT_SETTINGS, pauses=(60.0, 60.0))
    lanes, rest = [lane.solver for lane in executor._lanes], executor._rest
    assert all(solver.begin() for solver in (*lanes, rest))
    pids = [solver.pid for solver in (*lanes, rest) if isinstance(solver, SolverApart) and solver.pid is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr("rankd.executors.apart.solver.HANG_SECONDS", 0.5)
        error = executor.submit(work(torch.eye(3), "bomb")).exception(SECONDS)
    assert isinstance(error, MeasureError) and "the process that measured it ended" in str(error)
    assert not any(is_there(pid) for pid in pids) and len(pids) == 3 == told.qsize() + 1
    assert executor.submit(work(torch.eye(2), "next")).result(SECONDS)[-1].layer == "next"
    executor.close()


def test_it_hangs_only_after_long_and_many_times_what_such_a_batch_takes() -> None:
    costs = Costs()
    solver = SolverApart(CPU, no_fault, DEFAULT_SETTINGS, costs=costs)  # type: ignore[arg-type]
    small, large = work(torch.ones(64, 32)), work(torch.ones(1024, 1024))
    assert HANG_SECONDS < solver._max_seconds([small]) < HANG_SECONDS + 1
    expected = costs.predict("cpu", "exact", Size(1024, 1024))
    assert solver._max_seconds([large] * 3) == pytest.approx(HANG_SECONDS + HANG_TIMES * 3 * expected)
    for _ in range(50):  # seen on a slow machine
        costs.learn("cpu", "exact", Size(1024, 1024), 60.0)
    assert 50 * 60 < solver._max_seconds([large]) < MAX_HANG_SECONDS == solver._max_seconds([large] * 10**6)


def test_where_several_processes_share_a_cpu_the_fault_says_how_many_go_on() -> None:
    told: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    executor = in_processes([CPU, CPU], lambda *of: told.put(of), DEFAULT_SETTINGS, pauses=(60.0, 60.0))
    solver = executor._lanes[0].solver
    assert isinstance(solver, SolverApart)
    until(lambda: solver.is_ready)
    os.kill(solver.pid or 0, signal.SIGKILL)
    until(lambda: bool(executor.submit(work(torch.eye(2))).result(SECONDS)) and solver.is_lost)
    assert str(told.get(timeout=SECONDS)[1]).endswith("it is started again in 60 s; measuring goes on in the other one")
    executor._tell("device", None)
    assert told.get() == ("device", "1 of its processes failed before; measuring goes on in the other one")
    assert executor._where(3) == "in the 3 others"
    executor.close()


def test_that_an_idle_process_was_killed_does_not_count_against_what_is_next(apart: Apart) -> None:
    pid = process_of(apart)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_there(pid))
    assert [str(outcome) for outcome in apart.solver.try_all([work(torch.eye(2))])] == ["gone"]
    assert apart.told.get(timeout=SECONDS)[1] is not None
    until(lambda: apart.solver.is_ready)
    assert apart.told.get(timeout=SECONDS) == ("device", None)


LONG = f"""
import sys
sys.path[:] = {sys.path!r}
import torch
from works import CPU, work
from rankd.executors.apart.solver import SolverApart
from rankd.weights import DEFAULT_SETTINGS

solver = SolverApart(CPU, print, DEFAULT_SETTINGS)
assert solver.begin()
print(solver.pid, flush=True)
solver.try_all([work(torch.randn(4000, 4000))])
"""


def test_a_process_in_the_midst_of_a_solve_ends_with_the_daemon_that_is_killed() -> None:
    with fork_server.Popen([sys.executable, "-c", LONG], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        used = partial(seconds_of, pid)
        began = used()
        until(lambda: used() > began + 0.3)
        daemon.kill()
        until(lambda: not is_there(pid))


def seconds_of(pid: int) -> float:
    """Of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_numbers_are_those_of_this_process_and_a_killed_one_comes_back() -> None:
    gpu = torch.device("cuda", 0)
    told: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    items = [work(torch.randn(300, 200).bfloat16(), f"w{i}", "exact") for i in range(40)]
    expected = [measured("inline", item, gpu) for item in items]
    executor = in_processes([gpu], lambda *of: told.put(of), DEFAULT_SETTINGS, pauses=(0.5, 1.0))
    solver = executor._lanes[0].solver
    assert isinstance(solver, SolverApart) and solver.num_threads == 2
    for _ in range(2):
        futures = [executor.submit(item) for item in items]
        for future, (truth,) in zip(futures, expected, strict=True):
            (part,) = future.result(SECONDS)
            assert part.reading.metrics == pytest.approx(truth.reading.metrics, rel=1e-9)
            assert part.reading.method == truth.reading.method
        os.kill(solver.pid or 0, signal.SIGKILL)
        executor.submit(items[0]).result(SECONDS)
        assert told.get(timeout=SECONDS)[0] == "device"
        assert told.get(timeout=SECONDS) == ("device", None) and executor.devices == (gpu,)
    executor.close()


def test_one_that_does_not_start_is_told_and_leaves_its_work_to_the_cpu() -> None:
    absent = torch.device("cuda", torch.cuda.device_count())
    told: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    make = partial(SolverApart, settings=DEFAULT_SETTINGS)
    executor = BatchExecutor([absent], lambda *of: told.put(of), DEFAULT_SETTINGS, make)
    future = executor.submit(work(torch.diag(torch.tensor([3.0, 2.0]))))
    assert future.result(SECONDS)[-1].reading.metrics["spectral_norm"] == pytest.approx(3)
    name, text = told.get(timeout=SECONDS)
    assert name == "device" and text is not None and text.startswith(f"{absent} failed: ")
    assert text.endswith("it is tried again in 60 s; measuring goes on on cpu")
    assert executor.devices == (CPU,)
    executor.close()
