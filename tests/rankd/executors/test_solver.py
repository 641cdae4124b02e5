import pytest
import torch
from works import CPU, no_fault, snapshot, untimed, work

from rankd.executors import MeasureError, Work
from rankd.executors.solver import Solver
from rankd.records import Snapshot
from rankd.spectrum import LinAlgError
from rankd.weights import DEFAULT_SETTINGS, Part, Weight

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
ABSENT = torch.device("cuda", torch.cuda.device_count())


def broken(layer: str = "broken") -> Work:
    """Of more bytes than its shape says: a mistake of ours."""
    return Work(Snapshot("r", layer, 1, (2, 2), "float32", "", snapshot(torch.ones(3)).data))


def layers(outcomes: list[list[Part] | Exception]) -> list[str | type[Exception]]:
    return [type(outcome) if isinstance(outcome, Exception) else outcome[-1].layer for outcome in outcomes]


def test_each_has_its_own_outcome() -> None:
    solver = Solver(CPU, no_fault, DEFAULT_SETTINGS)
    works = [work(torch.eye(3), "a"), broken(), work(torch.eye(4), "b")]
    assert layers(solver.measure_all(works)) == ["a", RuntimeError, "b"]
    with pytest.raises(RuntimeError, match="shape"):
        solver.measure(broken())


def test_a_device_that_is_lost_is_not_tried_again() -> None:
    seen: list[tuple[str, str]] = []
    solver = Solver(ABSENT, lambda *fault: seen.append(fault), DEFAULT_SETTINGS)
    works = [work(torch.eye(n), f"w{n}") for n in range(2, 7)]
    assert layers(solver.measure_all(works)) == [f"w{n}" for n in range(2, 7)]
    assert layers(solver.measure_all(works)) == [f"w{n}" for n in range(2, 7)]
    assert (len(seen), solver.device) == (1, CPU)


class Unsolvable:
    """A weight with which no method converges, if it is not on the CPU."""

    shape = (2, 2)

    def __init__(self, everywhere: bool) -> None:
        self.everywhere = everywhere

    def on(self, device: torch.device) -> Weight:
        if self.everywhere or device != CPU:
            raise LinAlgError("it did not converge")
        return work(torch.eye(2), "solved").on(device)


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda", 0), marks=needs_cuda)])
def test_where_no_method_converges_it_is_tried_on_the_cpu_and_then_given_up(device: torch.device) -> None:
    solver = Solver(device, no_fault, DEFAULT_SETTINGS)
    found = [Unsolvable(everywhere) for everywhere in (False, True, False)]
    assert layers(solver.measure_all(found)) == ["solved", MeasureError, "solved"]
    assert solver.device == device


@needs_cuda
def test_one_of_ours_fails_and_its_batch_mates_do_not() -> None:
    solver = Solver(torch.device("cuda", 0), no_fault, DEFAULT_SETTINGS)
    odd = Work(Snapshot("r", "odd", 1, (2, 2), "float32", "", snapshot(torch.ones(3)).data[:3]))
    works = [work(torch.eye(3), "a"), odd, work(torch.eye(3), "b"), work(torch.eye(4), "c")]
    assert layers(solver.measure_all(works)) == ["a", ValueError, "b", "c"]
    assert solver.device.type == "cuda"


@needs_cuda
def test_what_does_not_fit_on_the_gpu_is_measured_on_the_cpu_and_the_next_on_the_gpu() -> None:
    items = [work(torch.randn(1024, 1024), f"w{i}", "estimate") for i in range(3)]
    gpu = torch.device("cuda", 0)
    solver = Solver(gpu, no_fault, DEFAULT_SETTINGS)
    torch.cuda.empty_cache()  # or what other tests left there is taken, which no limit refuses
    torch.cuda.set_per_process_memory_fraction(1e-6, gpu)
    try:
        outcomes = solver.measure_all(items)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert layers(outcomes) == ["w0", "w1", "w2"]
    assert all(parts[-1].reading.method.endswith("_cpu") for parts in outcomes if not isinstance(parts, Exception))
    assert solver.device == gpu and solver.measure(items[0])[-1].reading.method.endswith("_cuda")


@needs_cuda
def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once do not fit, each by itself does, though the batch was thought to."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("rankd.executors.solver.MEMORY_SHARE", float("inf"))
    items = [work(torch.randn(1024, 1024), f"w{i}", "norms") for i in range(16)]
    solver = Solver(gpu, no_fault, DEFAULT_SETTINGS)
    expected = [untimed(solver.measure(item)) for item in items[:1]]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    room = torch.cuda.memory_reserved(gpu) + (96 << 20)  # for 4 MiB each, copies and a library's workspace
    torch.cuda.set_per_process_memory_fraction(room / total, gpu)
    try:
        outcomes = solver.measure_all(items)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert layers(outcomes) == [f"w{i}" for i in range(16)]
    methods = {parts[-1].reading.method for parts in outcomes if not isinstance(parts, Exception)}
    assert methods == {expected[0][0][2]["method"]} == {"golub_kahan_cuda"}
