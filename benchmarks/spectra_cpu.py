"""What measuring the 48 matrices of a GPT-2-small costs on the CPU, and how wrong it is. One thread, CPU-seconds.

One round is, one after the other and starting with another one each time: the exact tier with all its metrics, the
norms tier, `torch.linalg.svdvals` in float32, and WeightWatcher's `analyze()` where that is installed (`make
bench-venv`). `ours` and `rival` are medians over rounds; `ratio` is to be at most `limit`. Errors are relative, the
worst metric's, against float64 `svdvals` of the same matrices, and of one 768 × 768 of each family of spectra.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import secrets
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from _families import FAMILIES, Shape, make
from _report import Report
from _truth import conditioning, missed_bars, true_metrics, true_singular_values, worst_errors
from torch import Tensor

from rankd.engine import Ask, measure_matrices
from rankd.records import Reading, Tier

WIDTH, NUM_BLOCKS = 768, 12
SHAPES = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
COMPARED = (("exact", "svdvals", 0.5), ("exact", "weightwatcher", 0.5), ("norms", "svdvals", 1 / 20))
RIVALS = {
    "svdvals": "torch.linalg.svdvals in float32 of the same matrices, one thread",
    "weightwatcher": "WeightWatcher's analyze() of the same matrices, one thread",
}
EXACT_ERROR = {"full": 1e-10, "ill": 1e-8, "deficient": 5e-5}

Weights = Mapping[Shape, Sequence[Tensor]]


def trained_like_model(first_seed: int, num_blocks: int) -> Weights:
    return {
        shape: [make("trained_like", shape, "float32", first_seed + 4 * block + part) for block in range(num_blocks)]
        for part, shape in enumerate(SHAPES)
    }


def measure(weights: Weights, tier: Tier) -> list[Reading]:
    readings = []
    for shape, same in weights.items():
        asks = [Ask(tier=tier, key=f"gpt2-small/{index}/{shape}") for index in range(len(same))]
        readings += measure_matrices(same, asks)
    return readings


def svdvals(weights: Weights) -> None:
    for same in weights.values():
        for weight in same:
            torch.linalg.svdvals(weight)


@contextlib.contextmanager
def weightwatcher(weights: Weights) -> Iterator[Callable[[], object]]:
    """What runs `analyze()` over the weights, as torch.nn.Linear layers, on one thread. What it prints is no row."""
    with contextlib.redirect_stdout(sys.stderr):
        import threadpoolctl  # comes along with WeightWatcher
        from weightwatcher import WeightWatcher

        layers = []
        for weight in (weight for same in weights.values() for weight in same):
            layers.append(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            layers[-1].weight.data = weight
        watcher = WeightWatcher(model=torch.nn.Sequential(*layers), log_level=logging.ERROR)
        with threadpoolctl.threadpool_limits(1):
            yield watcher.analyze


def cpu_seconds(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU-seconds of each, all of them in each round, each round starting with another."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            works[name]()
            taken[name].append(time.process_time() - started)
            print(f"round {number + 1}: {name} {taken[name][-1]:.3f} CPU-seconds", file=sys.stderr)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def report_costs(report: Report, weights: Weights, rounds: int) -> None:
    works: dict[str, Callable[[], object]] = {
        "exact": lambda: measure(weights, "exact"),
        "svdvals": lambda: svdvals(weights),
        "norms": lambda: measure(weights, "norms"),
    }
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("weightwatcher"):
            works["weightwatcher"] = stack.enter_context(weightwatcher(weights))
        else:
            print("WeightWatcher is not installed, its row is left out: see `make bench-venv`", file=sys.stderr)
        seconds = cpu_seconds(works, rounds)
    more = {"matrices": sum(map(len, weights.values())), "rounds": rounds, "torch": torch.__version__}
    for ours, rival, limit in COMPARED:
        if rival in seconds:
            more["rival_is"] = RIVALS[rival]
            report.ratio(f"cpu_{ours}_vs_{rival}", seconds[ours], seconds[rival], limit, "CPU-seconds", **more)


def report_errors(report: Report, name: str, weights: Weights) -> None:
    """By how the matrices are conditioned; and how many true values the bounds of the norms tier missed."""
    values = [true_singular_values(weight) for same in weights.values() for weight in same]
    truths = [true_metrics(spectrum) for spectrum in values]
    kinds = [conditioning(spectrum) for spectrum in values]
    readings = measure(weights, "exact")
    for kind in sorted(set(kinds)):
        chosen = [index for index, of in enumerate(kinds) if of == kind]
        errors = worst_errors([readings[index] for index in chosen], [truths[index] for index in chosen])
        more: dict[str, Any] = {"errors": errors, "matrices": len(chosen)}
        more["methods"] = sorted({readings[index].method for index in chosen})
        report.row(f"cpu_exact_error_{name}_{kind}", max(errors.values()), EXACT_ERROR[kind], "relative", **more)
    missed = [metric for pair in zip(measure(weights, "norms"), truths, strict=True) for metric in missed_bars(*pair)]
    more = {"missed": dict(Counter(missed)), "matrices": len(values)}
    report.row(f"cpu_norms_bounds_missed_{name}", len(missed), 0, "bars", **more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=NUM_BLOCKS, help="fewer are no GPT-2-small, for a quick look")
    parser.add_argument("--first-seed", type=int, default=secrets.randbelow(1 << 31))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    model = trained_like_model(arguments.first_seed, arguments.blocks)
    families = {(WIDTH, WIDTH): [make(name, (WIDTH, WIDTH), "float32", arguments.first_seed) for name in FAMILIES]}
    measure(families, "norms")  # warm up; the errors of the exact tier below do so for it
    report_errors(report, "families", families)
    report_errors(report, "model", model)
    report_costs(report, model, arguments.rounds)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
