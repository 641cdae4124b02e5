import os
import subprocess
import sys
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from rankd.config import EXECUTOR_NAMES, ConfigError
from rankd.executors import EXECUTORS, TORCH_DTYPES, Measured, ThreadExecutor, choose_device
from rankd.metrics import METRICS
from rankd.records import Snapshot
from rankd.summary import read_summary
from rankd_client.wire import DTYPES

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=needs_cuda)])


def snapshot(values: torch.Tensor) -> Snapshot:
    data = values.contiguous().view(torch.uint8).reshape(-1).numpy().copy()
    dtype = str(values.dtype).removeprefix("torch.")
    return Snapshot("r", "w", 1, tuple(values.shape), dtype, dtype, data)


def no_fault(name: str, text: str) -> None:
    raise AssertionError(f"{name}: {text}")


def measured(name: str, device: torch.device, item: Snapshot) -> Measured:
    executor = EXECUTORS[name](device, no_fault)
    try:
        return executor.submit(item).result(60)
    finally:
        executor.close()


def test_every_executor_can_be_configured() -> None:
    assert set(EXECUTORS) == set(EXECUTOR_NAMES)


def test_every_dtype_of_the_wire_can_be_measured() -> None:
    assert set(TORCH_DTYPES) == {name for name, dtype in DTYPES.items() if not dtype.reserved}


@devices
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_gives_the_numbers_of_svdvals(name: str, dtype: str, device: str) -> None:
    values = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(1)).to(TORCH_DTYPES[dtype])
    result = measured(name, torch.device(device), snapshot(values))
    sigma = torch.linalg.svdvals(values.reshape(12, 20).double()).numpy()
    share = sigma / sigma.sum()
    tolerance = 1e-12 if dtype == "float64" and device == "cpu" else 1e-5
    assert result.metrics.keys() == METRICS.keys()
    assert result.metrics["spectral_norm"] == pytest.approx(sigma[0], rel=tolerance)
    assert result.metrics["frobenius_norm"] == pytest.approx(np.sqrt((sigma**2).sum()), rel=tolerance)
    assert result.metrics["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=tolerance)
    assert result.metrics["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=tolerance)
    assert result.method.startswith("svdvals") and result.seconds > 0
    assert read_summary(result.summary).top[0] == pytest.approx(sigma[0], rel=1e-5)


def test_the_same_numbers_whichever_executor() -> None:
    item = snapshot(torch.randn(30, 40))
    first, *others = [measured(name, CPU, item).metrics for name in EXECUTORS]
    assert all(metrics == first for metrics in others)


def test_one_intra_op_thread_a_worker_and_the_callers_count_untouched() -> None:
    before = torch.get_num_threads()
    executor = ThreadExecutor(CPU, no_fault)
    try:
        assert executor.num_slots >= 2
        meet = threading.Barrier(executor.num_slots)

        def look() -> tuple[int, int, int]:
            meet.wait(30)
            return (
                threading.get_ident(),
                torch.get_num_threads(),
                os.getpriority(os.PRIO_PROCESS, threading.get_native_id()),
            )

        seen = [executor._pool.submit(look) for _ in range(executor.num_slots)]
        workers, threads, nices = zip(*(future.result(30) for future in seen), strict=True)
        assert len(set(workers)) == executor.num_slots and set(threads) == {1}
        assert min(nices) > os.getpriority(os.PRIO_PROCESS, 0), "measuring yields to the trainer"
    finally:
        executor.close()
    assert torch.get_num_threads() == before


def test_a_fault_of_measuring_is_in_the_future() -> None:
    executor = ThreadExecutor(CPU, no_fault)
    broken = Snapshot("r", "w", 1, (2, 2), "float32", "", np.zeros(3, np.uint8))
    future: Future[Measured] = executor.submit(broken)
    assert isinstance(future.exception(30), ValueError)
    executor.close()


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_gpu_that_is_lost_leaves_its_work_to_the_cpu(name: str) -> None:
    """One that is not there fails as one that is lost does: by an error of torch's in the midst of measuring."""
    absent = torch.device("cuda", torch.cuda.device_count())
    seen: list[tuple[str, str]] = []
    executor = EXECUTORS[name](absent, lambda fault, text: seen.append((fault, text)))
    item = snapshot(torch.randn(6, 5))
    try:
        results = [executor.submit(item).result(60) for _ in range(2)]
    finally:
        executor.close()
    assert all(result.metrics == measured(name, CPU, item).metrics for result in results)
    assert [fault for fault, _ in seen] == ["device"] and seen[0][1].startswith(f"{absent} failed: ")
    assert executor.device == CPU


@needs_cuda
def test_what_does_not_fit_on_the_gpu_is_measured_on_the_cpu_and_the_next_on_the_gpu() -> None:
    item = snapshot(torch.randn(1024, 1024))
    gpu = torch.device("cuda", 0)
    executor = EXECUTORS["inline"](gpu, no_fault)
    torch.cuda.empty_cache()  # or what other tests left there is taken, which no limit refuses
    torch.cuda.set_per_process_memory_fraction(1e-6, gpu)
    try:
        assert executor.submit(item).result(60).method == "svdvals"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert executor.device == gpu and executor.submit(item).result(60).method == "svdvals_gesvda"


LOST = """
import sys
import numpy as np
import torch
from rankd.executors import EXECUTORS
from rankd.records import Snapshot

seen = []
executor = EXECUTORS[sys.argv[1]](torch.device("cuda", 0), lambda name, text: seen.append((name, text)))
item = Snapshot("r", "w", 1, (2, 2), "float32", "", np.array([3, 0, 0, 2], np.float32).view(np.uint8))
assert executor.submit(item).result().method == "svdvals_gesvda" and not seen
torch.zeros(1, device="cuda:0")[torch.tensor([5], device="cuda:0")]  # an assertion on the device: its context is dead
for _ in range(2):
    result = executor.submit(item).result()
    assert result.method == "svdvals" and abs(result.metrics["spectral_norm"] - 3) < 1e-6
assert [name for name, _ in seen] == ["device"] and "CUDA error" in seen[0][1], seen
assert executor.device.type == "cpu"
executor.close()
"""


@needs_cuda
@pytest.mark.parametrize("name", EXECUTORS)
def test_a_gpu_whose_context_died_leaves_its_work_to_the_cpu(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOST, name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


WITHOUT_MEMORY = """
import resource, sys
import numpy as np
import torch
from rankd.executors import EXECUTORS, MeasureError
from rankd.records import Snapshot

size = 1 << 26
wide = Snapshot("r", "w", 1, (2, size // 2), "bfloat16", "", np.ones(2 * size, np.uint8))
small = Snapshot("r", "w", 1, (2, 2), "float32", "", np.arange(16, dtype=np.uint8))
executor = EXECUTORS[sys.argv[1]](torch.device("cpu"), lambda name, text: sys.exit(3))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20), resource.RLIM_INFINITY))
error = executor.submit(wide).exception()
assert isinstance(error, MeasureError) and "2×33554432" in str(error), error
assert executor.submit(small).result().method == "svdvals"
"""


@pytest.mark.parametrize("name", EXECUTORS)
def test_want_of_memory_costs_one_matrix_alone(name: str) -> None:
    """In a process of its own, whose address space ends where the copy to float32 would begin."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, name], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_close_drops_what_has_not_begun() -> None:
    executor = ThreadExecutor(CPU, no_fault)
    release = threading.Event()
    busy = [executor._pool.submit(release.wait, 30) for _ in range(executor.num_slots)]
    waiting = executor.submit(snapshot(torch.ones(2, 2)))
    executor.close()
    release.set()
    assert waiting.cancelled() and all(future.result(30) for future in busy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_devices_without_a_gpu() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="device='cuda:0': expected one of the 0 GPUs that are there"):
        choose_device("cuda:0")


@needs_cuda
def test_devices_with_a_gpu() -> None:
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    assert ThreadExecutor(choose_device("cuda:0"), no_fault).num_slots == 1
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=f"device='{absent}'"):
        choose_device(absent)


@needs_cuda
def test_auto_leaves_a_gpu_in_use_alone() -> None:
    ours = torch.ones(1 << 29, device="cuda:0")  # a trainer's 2 GiB
    assert choose_device("auto") != torch.device("cuda", 0)
    del ours
