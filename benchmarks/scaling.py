"""How the seconds of a measurement grow with the size of the matrix: exact, estimate, norms and `svdvals`, n × n.

One JSON line a size and way; then, for each way, the exponent p of seconds ∝ n^p, fitted by least squares of logarithms
to the larger half of the sizes. `--picture PATH` draws them, with the device's name. One thread on the CPU; on CUDA the
matrices come eight at a time, which is how small ones are measured there, and `svdvals` one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _families import make
from _picture import log_log
from torch import Tensor

from rankd.engine import Ask, measure_matrices
from rankd.records import TIERS, Tier

SIZES = {"cpu": (128, 256, 512, 1024, 2048), "cuda": (256, 512, 1024, 2048, 4096, 8192)}
BATCH = {"cpu": 1, "cuda": 8}
REPEATS = 3
RIVAL = "svdvals"


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.machine()}, 1 thread"


def ways(weights: Sequence[Tensor]) -> dict[str, Callable[[], str]]:
    """Name → what measures all of them that way, and says by which method the first was."""

    def measure(tier: Tier) -> Callable[[], str]:
        asks = [Ask(tier, f"scaling/{index}/{tuple(weight.shape)}") for index, weight in enumerate(weights)]
        return lambda: measure_matrices(weights, asks)[0].method

    def svdvals() -> str:
        torch.linalg.svdvals(weights[0])
        return RIVAL

    return {RIVAL: svdvals} | {str(tier): measure(tier) for tier in reversed(TIERS)}


def timed(work: Callable[[], str], cuda: bool) -> tuple[float, str]:
    """The median seconds of a few, after one to warm up; and what `work` says."""
    taken = []
    for _ in range(1 + REPEATS):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        said = work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:]), said


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Of the larger half, three at least: small matrices cost launches and calls, not arithmetic."""
    last = points[-max(3, (len(points) + 1) // 2) :]
    fit = statistics.linear_regression([math.log(n) for n, _ in last], [math.log(taken) for _, taken in last])
    return fit.slope


def scale(device: str, sizes: Sequence[int], picture: Path | None) -> None:
    name = device_name(device)
    points: dict[str, list[tuple[float, float]]] = {}
    for n in sizes:
        weights = [make("trained_like", (n, n), "float32", 100 * n + index, device) for index in range(BATCH[device])]
        for way, work in ways(weights).items():
            count = 1 if way == RIVAL else len(weights)
            whole, method = timed(work, device == "cuda")
            points.setdefault(way, []).append((n, whole / count))
            row = {"name": f"scaling_{device}_{way}", "n": n, "ours": float(f"{whole / count:.4g}")}
            more = {"unit": "seconds a matrix", "batch": count, "method": method, "device": name}
            print(json.dumps({**row, **more, "torch": torch.__version__}), flush=True)
    fitted = {way: round(exponent(values), 2) for way, values in points.items() if len(values) > 1}
    for way, power in fitted.items():
        row = {"name": f"scaling_{device}_{way}_exponent", "ours": power, "unit": "exponent of n", "device": name}
        print(json.dumps(row), flush=True)
    if picture is not None:
        lines = {f"{way} ∝ n^{fitted[way]}": values for way, values in points.items()}
        title = f"Seconds a matrix, n × n float32, {name}"
        picture.write_text(log_log(title, "n", "seconds", lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the matrices' sides, ascending, two at least")
    parser.add_argument("--picture", type=Path, help="where the SVG goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale(arguments.device, arguments.sizes or SIZES[arguments.device], arguments.picture)


if __name__ == "__main__":
    main()
