"""What several GPUs of one host gain over one: the weights of a Llama-2-7B in bfloat16, through the daemon's executor.

Snapshots lie in the host's memory, as from the wire, and as many are under way as the daemon hands over. `cuda:0` alone
and all of them take turns in one run, by each executor; matrices/s are of the median round, from the first submit to
the last result; `ours` is how many times those of one the others make, at least 0.9 for each GPU.
`times_first_executor` compares the executors, all devices each. `computing_seconds` are summed over matrices, without
copies to the device: where they grow with the number of GPUs, these wait for each other in Python.
`copies_gb_per_second`: of the same snapshots, copied by threads and nothing else. The numbers have to be equal, of
estimates but for rounding, which is another in other batches, and within their bars: a process has warm starts of its
own.

`--lose` has one GPU fail in the midst of a run, in a process of its own: see _lose_gpu.py. Both take below a minute on
two H100. `--device cpu --tiny` shows that it runs.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from _families import Shape, make
from _lose_gpu import WAYS, lose
from _report import Report

from rankd.executors import Executor, Part, Work
from rankd.executors.apart.solver import SolverApart, in_processes
from rankd.executors.batches import BatchExecutor
from rankd.records import Snapshot, Tier
from rankd.weights import DEFAULT_SETTINGS

BLOCK: Sequence[Shape] = (*[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008))
"""The matrices of one of 32 blocks."""
TINY: Sequence[Shape] = (*[(256, 256)] * 4, *[(344, 256)] * 2, (256, 344))
NUM_MATRICES: Mapping[Tier, int] = {"exact": 7 * 7, "estimate": 24 * 7}
ROUNDS: Mapping[Tier, int] = {"exact": 2, "estimate": 3}
GAIN = 0.9
LOSE_SECONDS = 120.0
EQUAL: Mapping[Tier, float] = {"exact": 1e-9, "estimate": 2e-3}
"""Largest relative difference of a metric."""

EXECUTORS = {"threads": BatchExecutor, "processes": in_processes}

Readings = Mapping[str, Part]


def make_snapshots(shapes: Sequence[Shape], number: int, first_seed: int, device: torch.device) -> list[Snapshot]:
    """In the order of the model; each a different matrix."""
    found = []
    for index in range(number):
        shape = shapes[index % len(shapes)]
        values = make("trained_like", shape, "bfloat16", first_seed + index, str(device)).cpu()
        data = values.view(torch.uint8).reshape(-1).numpy()
        found.append(Snapshot("run", f"w{index}", 1, shape, "bfloat16", "bfloat16", data))
    return found


def measure(executor: Executor, works: Sequence[Work]) -> tuple[Readings, float]:
    """The whole of each, and seconds; as many under way as the executor has slots."""
    slots = threading.Semaphore(executor.num_slots)
    futures = []
    began = time.perf_counter()
    for work in works:
        slots.acquire()
        futures.append(executor.submit(work))
        futures[-1].add_done_callback(lambda _: slots.release())
    found = {future.result()[-1].layer: future.result()[-1] for future in futures}
    return found, time.perf_counter() - began


def warm_up(executor: BatchExecutor, works: Sequence[Work], num_shapes: int) -> None:
    """Several of each shape on each device: processes are there, libraries are loaded, memory is there, costs are
    known."""
    solvers = [lane.solver for lane in executor._lanes]
    while not all(solver.is_ready for solver in solvers if isinstance(solver, SolverApart)):
        time.sleep(0.1)
    for _ in range(3):
        measure(executor, works[: 4 * num_shapes * executor.num_workers])


def copies_per_second(snapshots: Sequence[Snapshot], devices: Sequence[torch.device]) -> float:
    """GB: each device has its part of the snapshots copied by a thread of its own."""
    works = [Work(snapshot) for snapshot in snapshots]

    def copy(place: int) -> None:
        for work in works[place :: len(devices)]:
            work.on(devices[place])

    threads = [threading.Thread(target=copy, args=(place,)) for place in range(len(devices))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(snapshot.data.nbytes for snapshot in snapshots) / (time.perf_counter() - began) / 1e9


def differences(some: Readings, others: Readings) -> Iterator[tuple[float, bool]]:
    """Of each metric, relative; infinite where only one has it, or one has fallen to another tier. And whether bars of
    both have values in common, as where estimates began from other starts."""
    for layer, part in some.items():
        mine, theirs = part.reading, others[layer].reading
        for name, value in mine.metrics.items():
            other = theirs.metrics[name]
            if value is None or other is None or mine.tier != theirs.tier:
                yield (0.0 if value is other else float("inf")), False
                continue
            bars = [reading.bars.get(name, (at, at)) for reading, at in ((mine, value), (theirs, other))]
            low, high = max(low for low, _ in bars), min(high for _, high in bars)
            yield abs(value - other) / max(abs(value), abs(other), 1e-300), low <= high


def compare(
    report: Report, names: Sequence[str], works: Sequence[Work], devices: Sequence[torch.device], more: Any
) -> None:
    """All works are of one tier. Executors of every name take turns, with one device and with all."""
    tier, many = works[0].tier, len(devices)
    keys = [(name, n) for name in names for n in (1, many)]
    executors = {(name, n): EXECUTORS[name](devices[:n], _unexpected, DEFAULT_SETTINGS) for name, n in keys}
    num_shapes = len({work.shape for work in works})
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    computing: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    found: dict[tuple[str, int], Readings] = {}
    for executor in executors.values():
        warm_up(executor, works, num_shapes)
    for number in range(ROUNDS[tier]):
        for key in keys[:: 1 if number % 2 == 0 else -1]:
            found[key], taken = measure(executors[key], works)
            seconds[key].append(taken)
            computing[key].append(sum(part.reading.seconds for part in found[key].values()))
            print(f"{tier}, round {number + 1}, {key[1]} devices, {key[0]}: {taken:.2f} s", file=sys.stderr)
    for executor in executors.values():
        executor.close()
    rates = {key: len(works) / statistics.median(taken) for key, taken in seconds.items()}
    for name in names:
        both = {n: (name, n) for n in (1, many)}
        said = {
            "executor": name,
            "matrices": len(works),
            "matrices_per_second": {n: round(rates[key], 2) for n, key in both.items()},
            "seconds": {n: [round(each, 3) for each in seconds[key]] for n, key in both.items()},
            "computing_seconds": {n: round(statistics.median(computing[key]), 3) for n, key in both.items()},
            "times_first_executor": round(rates[name, many] / rates[names[0], many], 3),
            "fell_to_exact": sum(part.reading.tier != tier for part in found[name, many].values()),
        }
        gain = round(rates[name, many] / rates[name, 1], 3)
        report.row(f"gpus_{many}_{tier}", gain, GAIN * many, "times one", at_least=True, **said, **more)
        off = list(differences(found[keys[0]], found[name, many]))
        worst = max(each for each, _ in off)
        said = {"worst": worst if worst < float("inf") else None, "tolerance": EQUAL[tier], "metrics": len(off)}
        unlike = sum(each > EQUAL[tier] and not agree for each, agree in off)
        report.row(f"gpus_{many}_{tier}_unlike", unlike, 0, "metrics", executor=name, **said, **more)


def _unexpected(fault: str, text: str | None) -> None:
    print(f"two_gpus.py: {fault}: {text}; expected all devices to the end", file=sys.stderr)


def lose_all(report: Report, arguments: argparse.Namespace) -> None:
    """Each way in a process of its own, which may die of it."""
    for way in arguments.lose or list(WAYS[arguments.device]):
        rest = ["--device", arguments.device, "--first-seed", str(arguments.first_seed)]
        command = [sys.executable, __file__, "--lose", way, "--here", *rest]
        try:
            code = subprocess.run(command, timeout=LOSE_SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = 124
        report.row(f"gpus_lose_{way}_exit", abs(code), 0, "exit code or signal")


def compare_all(report: Report, arguments: argparse.Namespace, devices: list[torch.device], more: Any) -> None:
    shapes = TINY if arguments.tiny else BLOCK
    numbers = {
        tier: arguments.num_matrices or (28 if arguments.tiny else NUM_MATRICES[tier]) for tier in arguments.tier
    }
    snapshots = make_snapshots(shapes, max(numbers.values()), arguments.first_seed, devices[0])
    for device in devices:
        copies_per_second(snapshots[:8], [device])  # warms up
    rates = {n: round(copies_per_second(snapshots[:112], devices[:n]), 2) for n in (1, len(devices))}
    for tier, number in numbers.items():
        works = [Work(snapshot, tier) for snapshot in snapshots[:number]]
        compare(report, arguments.executor, works, devices, {"copies_gb_per_second": rates, **more})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--executor", nargs="+", default=list(EXECUTORS), choices=list(EXECUTORS))
    parser.add_argument("--device-count", type=int, default=2)
    parser.add_argument("--tier", nargs="+", default=list(NUM_MATRICES), choices=list(NUM_MATRICES))
    parser.add_argument("--num-matrices", type=int, help="of each tier; whole blocks are of 7")
    parser.add_argument("--tiny", action="store_true", help="small matrices")
    parser.add_argument("--lose", nargs="*", metavar="WAY", help=f"of {WAYS}; left out, all of the device's")
    parser.add_argument("--here", action="store_true", help="lose it in this process")
    parser.add_argument("--first-seed", type=int, default=secrets.randbelow(1 << 31))
    arguments = parser.parse_args()
    report = Report()
    count = torch.cuda.device_count()
    if arguments.device == "cuda" and count < arguments.device_count:
        print(f"two_gpus.py: torch sees {count} CUDA devices; expected {arguments.device_count}", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    devices = [torch.device(arguments.device, i) for i in range(arguments.device_count)]
    if arguments.device == "cpu":
        devices = [torch.device("cpu")] * arguments.device_count
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    more = {"device": name, "torch": torch.__version__, "first_seed": arguments.first_seed}
    if arguments.lose is None:
        compare_all(report, arguments, devices, more)
    elif arguments.here:
        for way in arguments.lose:
            lose(report, way, devices, arguments.first_seed, more)
    else:
        lose_all(report, arguments)
    for thread in threading.enumerate():
        if thread.name.startswith("measure-"):  # of executors that are closed; torch aborts where one ends after us
            thread.join(10)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
