"""One GPU that fails in the midst of a run, for real, and what comes of the work.

`context`: the driver takes the process's context on the last GPU away, with all that is in it, as a GPU that has fallen
off the bus would; the others' stay. `memory`: another process takes all memory of the last GPU that there is.
`assertion`: a kernel trips an assertion, which spoils the contexts of all GPUs in the process: the CPU has to do the
rest. `absent`: a GPU that is not there, beside the CPU as a device. `killed`: the last device's process, where each has
one; it has to come back.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from _families import make
from _report import Report

from rankd.executors import Part, Work
from rankd.executors.apart.solver import SolverApart, in_processes
from rankd.executors.batches import BatchExecutor
from rankd.records import Snapshot
from rankd.weights import DEFAULT_SETTINGS

WAYS = {"cuda": ("context", "memory", "assertion", "killed"), "cpu": ("absent", "killed")}
NUM_DISTINCT = 64
NUM_WORKS = {"memory": 768, "context": 1536, "assertion": 192, "absent": 192, "killed": 192}
SIDES = {"memory": 4096, "context": 1024, "assertion": 768, "absent": 256, "killed": 256}
PAUSES = 2.0, 60.0
COME_BACK_SECONDS = 60.0
TOLERANCE = 0.05
"""Of the effective rank: an estimate, on the CPU by other random numbers."""

HOG = """
import sys, torch
device = torch.device("cuda", int(sys.argv[1]))
torch.ones(1, device=device)
print("ready", flush=True)
sys.stdin.readline()
held, size = [], 1 << 32
while size >= 1 << 26:
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device=device))
    except torch.cuda.OutOfMemoryError:
        size //= 2
print("full", flush=True)
sys.stdin.readline()
"""


def lose(report: Report, way: str, devices: Sequence[torch.device], first_seed: int, more: Any) -> None:
    """Rows of what is missing or wrong afterwards, how many devices are left, and what the CPU had to do."""
    works = _works(SIDES[way], NUM_WORKS[way], first_seed, devices[0])
    reference = BatchExecutor(devices[:1], _print, DEFAULT_SETTINGS)
    truths = [_effective_rank(future) for future in [reference.submit(work) for work in works[:: len(works) // 8]]]
    reference.close()
    if way == "absent":
        devices = [torch.device("cuda", torch.cuda.device_count()), *devices[1:]]
    seen: list[str] = []
    make = partial(in_processes, pauses=PAUSES) if way == "killed" else BatchExecutor
    executor = make(devices, lambda fault, text: seen.append(f"{fault}: {text}"), DEFAULT_SETTINGS)
    hog = _start_hog(devices[-1]) if way == "memory" else None
    futures = [executor.submit(work) for work in works]
    for future in futures[: len(futures) // 4]:
        future.result()
    num_left = sum(not future.done() for future in futures)
    if way == "killed":
        _kill_process(executor)
    else:
        _fail(way, devices[-1], hog)
    parts, wrong = _gather(futures)
    wrong += sum(
        abs(float(parts[index].reading.metrics["effective_rank"] or 0) / truth - 1) > TOLERANCE
        for index, truth in zip(range(0, len(parts), len(works) // 8), truths, strict=True)
        if index in parts
    )
    on_cpu = sum(part.reading.method.endswith("_cpu") for part in parts.values())
    if way == "killed":
        until = time.monotonic() + COME_BACK_SECONDS
        while len(executor.devices) < len(devices) and time.monotonic() < until:
            time.sleep(0.1)
    left = [str(device) for device in executor.devices]
    said = {"matrices": len(works), "under_way_then": num_left, "faults": seen, "left": left, "on_cpu": on_cpu, **more}
    report.row(f"gpus_lose_{way}", wrong, 0, "matrices missing or wrong", **said)
    expected = {"memory": len(devices), "killed": len(devices), "assertion": 0}.get(way, len(devices) - 1)
    found = len([name for name in left if name.startswith(devices[-1].type)]) if way != "assertion" else left != ["cpu"]
    report.row(f"gpus_lose_{way}_left", abs(int(found) - expected), 0, "devices more or fewer than expected", left=left)
    executor.close()
    if hog is not None:
        hog.communicate("\n")


def _kill_process(executor: BatchExecutor) -> None:
    """That of the last device."""
    solver = executor._lanes[-1].solver
    assert isinstance(solver, SolverApart)
    while not solver.is_ready:
        time.sleep(0.1)
    if solver.pid is not None:
        os.kill(solver.pid, signal.SIGKILL)


def _works(side: int, number: int, first_seed: int, device: torch.device) -> list[Work]:
    made = []
    for index in range(NUM_DISTINCT):
        values = make("trained_like", (side, side), "float32", first_seed + index, device.type).cpu()
        made.append(values.view(torch.uint8).reshape(-1).numpy())
    data = [made[index % NUM_DISTINCT] for index in range(number)]
    shape = (side, side)
    return [Work(Snapshot("run", f"w{i}", 1, shape, "float32", "float32", of), "estimate") for i, of in enumerate(data)]


def _fail(way: str, device: torch.device, hog: subprocess.Popen[str] | None) -> None:
    if way == "context":
        code = ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxReset_v2(device.index)
        print(f"cuDevicePrimaryCtxReset({device}) = {code}", file=sys.stderr)
    elif way == "assertion":
        torch.zeros(1, device=device)[torch.tensor([5], device=device)]
    elif hog is not None:
        assert hog.stdin and hog.stdout
        hog.stdin.write("\n")
        hog.stdin.flush()
        hog.stdout.readline()


def _start_hog(device: torch.device) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOG, str(device.index)]
    hog = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert hog.stdout
    hog.stdout.readline()
    return hog


def _gather(futures: Sequence[Future[list[Part]]]) -> tuple[dict[int, Part], int]:
    """By place, and how many have not come out, or under another's name."""
    parts: dict[int, Part] = {}
    for place, future in enumerate(futures):
        try:
            part = future.result(240)[-1]
        except Exception as error:
            print(f"w{place}: {error!r}", file=sys.stderr)
            continue
        if part.layer == f"w{place}":
            parts[place] = part
    return parts, len(futures) - len(parts)


def _effective_rank(future: Future[list[Part]]) -> float:
    return float(future.result(240)[-1].reading.metrics["effective_rank"] or 0)


def _print(fault: str, text: str) -> None:
    print(f"{fault}: {text}", file=sys.stderr)
