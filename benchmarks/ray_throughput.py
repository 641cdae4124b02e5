"""What a Ray cluster costs: the 48 matrices of a GPT-2-small, measured exactly, through Ray and by threads.

    python benchmarks/ray_throughput.py [--pairs N]

Both on two cores of this machine: two threads of this process, and two workers of a cluster that has two nodes of one
core each, so that matrices go through the object stores of both. Each pair measures all of them one way and then
the other, every second pair the other way round; the figure is the median of the pairs' ratios, as other work on the
machine comes and goes. Prints one JSON line a row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from _report import Report
from push_cost import blocks

from rankd.config import RayConfig
from rankd.executors import Executor, Work
from rankd.executors.ray.executor import RayExecutor
from rankd.executors.ray.link import Target
from rankd.executors.threads import ThreadExecutor
from rankd.plan import MeasureConfig
from rankd.records import Snapshot
from rankd.weights import DEFAULT_SETTINGS

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from ray_nodes import RayNodes

NUM_BLOCKS = 12
LIMIT = 0.8
WARM_UP = 4
"""Matrices, so that every worker has loaded its libraries."""


def works() -> list[Work]:
    made = []
    for block in blocks()[:NUM_BLOCKS]:
        for name, tensor in block.items():
            if tensor.dim() > 1:
                data = tensor.bfloat16().view(torch.uint8).reshape(-1).numpy().copy()
                made.append(Work(Snapshot("gpt2", name, 1, tuple(tensor.shape), "bfloat16", "float32", data)))
    return made


def fault(name: str, text: str | None) -> None:
    raise RuntimeError(f"{name}: {text}")


def seconds(executor: Executor, items: list[Work]) -> float:
    """Until all of them are measured; as many under way as a daemon would have."""
    began, under_way = time.perf_counter(), []
    for item in items:
        under_way.append(executor.submit(item))
        if len(under_way) == executor.num_slots:
            under_way.pop(0).result()
    for future in under_way:
        future.result()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    items, report = works(), Report()
    nodes = RayNodes(2, store_mib=512, own_session=False)  # or, on a busy machine, it would have a share of its own
    os.environ.update(nodes.environment)
    threads = ThreadExecutor(torch.device("cpu"), fault, DEFAULT_SETTINGS)
    try:
        ray = RayExecutor(Target("", False, 0, (), False), MeasureConfig(), RayConfig(), fault)
        executors: dict[str, Executor] = {"threads": threads, "ray": ray}
        for executor in executors.values():
            seconds(executor, items[:WARM_UP] * 2)
        pairs: list[dict[str, float]] = []
        for number in range(arguments.pairs):
            names = list(executors) if number % 2 else list(executors)[::-1]
            pairs.append({name: seconds(executors[name], items) for name in names})
        ray.close()
    finally:
        threads.close()
        nodes.close()
    ratios = [pair["threads"] / pair["ray"] for pair in pairs]
    more = {f"{name}_seconds": round(statistics.median(pair[name] for pair in pairs), 2) for name in executors}
    more |= {"matrices": len(items), "bytes": sum(item.snapshot.data.nbytes for item in items)}
    ours = round(statistics.median(ratios), 3)
    each = [round(ratio, 3) for ratio in ratios]
    report.row("ray_throughput", ours, LIMIT, "of that of threads", at_least=True, ratios=each, **more)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
