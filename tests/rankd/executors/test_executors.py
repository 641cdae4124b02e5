"""What all executors have in common."""

import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import fork_server
import numpy as np
import pytest
import torch
from works import CPU, MAKERS, make, measured, snapshot, untimed, work

from rankd.config import EXECUTOR_NAMES, ServeConfig
from rankd.executors import EXECUTORS, TORCH_DTYPES, Work, executor_of
from rankd.executors.work import SCALED_DTYPES
from rankd.metrics import METRICS
from rankd.records import Snapshot, Tier
from rankd.summary import read_summary
from rankd.weights import DEFAULT_SETTINGS
from rankd_client.wire import DTYPES

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=needs_cuda)])
every = pytest.mark.parametrize("name", MAKERS)


def test_every_executor_can_be_configured() -> None:
    assert {*EXECUTORS, "auto", "ray"} == set(EXECUTOR_NAMES)  # the last has tests of its own: it needs a cluster


@pytest.mark.parametrize(
    ("device", "executor", "wanted"),
    [
        ("auto", "auto", "threads"),
        ("cpu", "auto", "threads"),
        ("cuda:1", "auto", "threads"),
        ("cuda", "auto", "processes"),
        ("cuda:0,cuda:2", "auto", "processes"),
        ("cuda:0,cuda:0", "auto", "threads"),
        ("cuda", "threads", "threads"),
        ("cpu", "processes", "processes"),
        ("auto", "ray://head:10001", "ray://head:10001"),
    ],
)
def test_several_gpus_have_processes_unless_somebody_says_otherwise(
    device: str, executor: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    config = ServeConfig("ipc:///p", "ipc:///a", "ipc:///q", device=device, executor=executor)
    assert executor_of(config) == wanted


def test_every_dtype_of_the_wire_can_be_measured() -> None:
    assert {*TORCH_DTYPES, *SCALED_DTYPES} == {name for name, dtype in DTYPES.items() if not dtype.reserved}


@devices
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@every
def test_every_executor_gives_the_numbers_of_svdvals(name: str, dtype: str, device: str) -> None:
    values = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(1)).to(TORCH_DTYPES[dtype])
    (part,) = measured(name, work(values), torch.device(device))
    result = part.reading
    sigma = torch.linalg.svdvals(values.reshape(12, 20).double()).numpy()
    share = sigma / sigma.sum()
    assert (part.layer, part.shape, result.metrics.keys()) == ("w", (12, 5, 4), METRICS.keys())
    assert result.metrics["spectral_norm"] == pytest.approx(sigma[0], rel=1e-12)
    assert result.metrics["frobenius_norm"] == pytest.approx(np.sqrt((sigma**2).sum()), rel=1e-12)
    assert result.metrics["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-12)
    assert result.metrics["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-12)
    assert (result.method, result.tier) == ("gram_eigvalsh_float64", "exact") and result.seconds > 0
    assert read_summary(result.summary).top[0] == pytest.approx(sigma[0], rel=1e-5)


@pytest.mark.parametrize("tier", ["norms", "estimate", "exact"])
def test_the_same_numbers_whichever_executor(tier: Tier) -> None:
    """And however many are measured at once."""
    generator = torch.Generator().manual_seed(2)
    plain = [work(torch.randn(150, 160, generator=generator).bfloat16(), f"w{i}", tier) for i in range(3)]
    fused = work(torch.randn(96, 32, generator=generator), "h.c_attn.weight", tier)
    experts = work(torch.randn(3, 140, 130, generator=generator), "experts", tier)
    b = snapshot(torch.randn(40, 4, generator=generator), "x.lora_B")
    pair = Work(snapshot(torch.randn(4, 30, generator=generator), "x.lora_A"), tier, b)
    found = {}
    for name in MAKERS:
        executor = make(name)
        futures = [executor.submit(item) for item in (*plain, fused, experts, pair)]
        found[name] = [untimed(future.result(60)) for future in futures]
        executor.close()
    assert [[layer for layer, *_ in parts] for parts in found["inline"]] == [
        *[[f"w{i}"] for i in range(3)],
        [f"h.c_attn.weight{part}" for part in (":q", ":k", ":v", "")],
        ["experts"],
        ["x.lora_BA", "x.lora_A"],
    ]
    expected = found.pop("inline")
    for name, weights in found.items():
        for parts, others in zip(weights, expected, strict=True):
            for (layer, shape, reading), (*also, other) in zip(parts, others, strict=True):
                assert [layer, shape] == also and reading["tier"] == other["tier"], name
                for key in ("metrics", "bars"):  # one intra-op thread or two: sums are in another order
                    assert flat(reading[key]) == pytest.approx(flat(other[key]), rel=1e-4, nan_ok=True), layer


def flat(numbers: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Of metrics, or of bars with their ends; NaN where there is none."""
    ends = {name: value if isinstance(value, tuple) else (value,) for name, value in numbers.items()}
    return {(name, end): math.nan if n is None else n for name, values in ends.items() for end, n in enumerate(values)}


@every
def test_a_fault_of_measuring_is_in_the_future(name: str) -> None:
    executor = make(name)
    broken = Snapshot("r", "w", 1, (2, 2), "float32", "", np.zeros(3, np.uint8))
    try:
        assert isinstance(executor.submit(Work(broken)).exception(30), ValueError)
        assert executor.submit(work(torch.eye(2))).result(30)
    finally:
        executor.close()


@every
def test_a_gpu_that_is_lost_leaves_its_work_to_the_cpu(name: str) -> None:
    """One that is not there fails as one that is lost does: by an error of torch's in the midst of measuring."""
    absent = torch.device("cuda", torch.cuda.device_count())
    seen: list[tuple[str, str]] = []
    executor = MAKERS[name]([absent], lambda fault, text: seen.append((fault, text)), DEFAULT_SETTINGS)
    item = work(torch.randn(6, 5))
    try:
        results = [executor.submit(item).result(60) for _ in range(2)]
    finally:
        executor.close()
    assert all(untimed(result) == untimed(measured(name, item)) for result in results)
    assert [fault for fault, _ in seen] == ["device"] and seen[0][1].startswith(f"{absent} failed: ")
    assert executor.device == CPU


LOST = """
import sys
import numpy as np
import torch
from works import MAKERS
from rankd.executors import Work
from rankd.records import Snapshot
from rankd.weights import DEFAULT_SETTINGS

seen = []
gpu = torch.device("cuda", 0)
executor = MAKERS[sys.argv[1]]([gpu], lambda name, text: seen.append((name, text)), DEFAULT_SETTINGS)
item = Work(Snapshot("r", "w", 1, (2, 2), "float32", "", np.array([3, 0, 0, 2], np.float32).view(np.uint8)))
assert executor.submit(item).result() and not seen and executor.device == gpu
torch.zeros(1, device="cuda:0")[torch.tensor([5], device="cuda:0")]  # an assertion on the device: its context is dead
for _ in range(2):
    (part,) = executor.submit(item).result()
    assert abs(part.reading.metrics["spectral_norm"] - 3) < 1e-6
assert [name for name, _ in seen] == ["device"] and "CUDA error" in seen[0][1], seen
assert executor.device.type == "cpu"
executor.close()
"""


def run(code: str, name: str, **environment: str) -> None:
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = fork_server.run(
        [sys.executable, "-c", path + code, name],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@needs_cuda
@every
def test_a_gpu_whose_context_died_leaves_its_work_to_the_cpu(name: str) -> None:
    run(LOST, name)


WITHOUT_MEMORY = """
import resource, sys, threading
import numpy as np
import torch
from works import MAKERS
from rankd.executors import MeasureError, Work
from rankd.records import Snapshot
from rankd.weights import DEFAULT_SETTINGS

size = 1 << 26
wide = Work(Snapshot("r", "w", 1, (2, size // 2), "bfloat16", "", np.ones(2 * size, np.uint8)))
small = Work(Snapshot("r", "w", 1, (2, 2), "float32", "", np.arange(16, dtype=np.uint8)))
executor = MAKERS[sys.argv[1]]([torch.device("cpu")], lambda name, text: sys.exit(3), DEFAULT_SETTINGS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20), resource.RLIM_INFINITY))
futures = [executor.submit(item) for item in (wide, small)]
error = futures[0].exception()
assert isinstance(error, MeasureError) and "2×33554432" in str(error), error
assert futures[1].result()[-1].reading.metrics["spectral_norm"] > 0
executor.close()
for thread in threading.enumerate():  # one that is in torch's C++ as the interpreter ends would abort the process
    if thread is not threading.current_thread():
        thread.join(60)
"""


@every
def test_want_of_memory_costs_one_matrix_alone(name: str) -> None:
    """In a process of its own, whose address space ends where the copy to float64 would begin."""
    run(WITHOUT_MEMORY, name, OMP_NUM_THREADS="1")
