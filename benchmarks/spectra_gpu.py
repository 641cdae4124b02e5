"""What measuring costs on a CUDA device: one 4096 × 4096 in each tier, and the 224 matrices of a Llama-2-7B.

`ours` is seconds a matrix (of the model: for all of them) by the wall clock, the device idle before and after, medians
after a warm-up; the rival is `torch.linalg.svdvals` with its default driver, of the same float32 matrices. Errors are
relative, against float64 `svdvals`. Of the model, which lies on the device in bfloat16, the rival is timed on a sample
and extrapolated. Exits with 1 where there is no CUDA. The device's name stands in each row; about 5 minutes on an H100.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from _families import Shape, make
from _report import Report
from _truth import missed_bars, relative_errors, true_metrics, true_singular_values, worst_errors
from torch import Tensor

from rankd.engine import Ask, measure_matrices
from rankd.records import Reading, Tier

SIZE, MOST = 4096, 16
TYPICAL = ("gaussian", "trained_like")
"""What is timed: weights as they are at the start of a training and later."""
HARD = ("spiked", "power_1", "low_rank", "low_rank_noise", "graded", "two_clusters")
BATCHES: Mapping[Tier, tuple[int, ...]] = {"exact": (1,), "estimate": (1, 8, MOST), "norms": (1, 8, MOST)}
SPEEDUPS: Mapping[Tier, float] = {"exact": 8, "estimate": 100, "norms": 500}
EXACT_ERROR, HARD_ERROR, ESTIMATE_ERROR = 1e-6, 5e-5, 0.01
MODEL_SHAPES: Mapping[Shape, int] = {(4096, 4096): 4 * 32, (11008, 4096): 2 * 32, (4096, 11008): 32}
MODEL_SECONDS: Mapping[Tier, float] = {"norms": 0.3, "estimate": 1.5, "exact": 30}
RIVAL = "torch.linalg.svdvals, default driver"

More = Mapping[str, Any]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of the wall clock, with nothing else under way on the device."""
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def svdvals_seconds(weights: Sequence[Tensor]) -> float:
    """Of one matrix, the mean over these, each timed once."""
    return statistics.mean(seconds(partial(torch.linalg.svdvals, weight.float()), 1) for weight in weights)


def measure(weights: Sequence[Tensor], tier: Tier, batch: int) -> list[Reading]:
    """Of equal shapes, `batch` at a time."""
    dtype = str(weights[0].dtype).removeprefix("torch.")
    readings = []
    for start in range(0, len(weights), batch):
        part = weights[start : start + batch]
        keys = [f"gpu/{start + index}/{tuple(weight.shape)}" for index, weight in enumerate(part)]
        readings += measure_matrices(part, [Ask(tier, key, wire_dtype=dtype, source_dtype=dtype) for key in keys])
    return readings


def fell_to_exact(readings: Sequence[Reading], tier: Tier) -> int:
    return sum(reading.tier != tier for reading in readings)


def square(family: str, seed: int) -> Tensor:
    return make(family, (SIZE, SIZE), "float32", seed, "cuda")


def squares(report: Report, first_seed: int, more: More) -> None:
    """The rows of the 4096 × 4096 matrices. Each goal is for the largest batch."""
    weights = [square(TYPICAL[index % len(TYPICAL)], first_seed + index) for index in range(MOST)]
    torch.linalg.svdvals(weights[0])  # warms up
    rival = svdvals_seconds(weights[:4])
    for tier, batches in BATCHES.items():
        for batch in batches:
            chosen = weights[: max(batch, len(TYPICAL))]
            readings = measure(chosen, tier, batch)  # warms up
            ours = seconds(partial(measure, chosen, tier, batch), 3) / len(chosen)
            found: dict[str, Any] = {"batch": batch, "speedup": round(rival / ours, 1), "method": readings[0].method}
            found |= {"fell_to_exact": fell_to_exact(readings, tier), "matrices": len(chosen), "rival_is": RIVAL}
            limit = 1 / SPEEDUPS[tier] if batch == batches[-1] else 1.0
            report.ratio(f"gpu_{SIZE}_{tier}_batch_{batch}", ours, rival, limit, "seconds", **found, **more)
    check(report, f"gpu_{SIZE}_typical", weights[:4], EXACT_ERROR, more)
    check(report, f"gpu_{SIZE}_hard", [square(family, first_seed) for family in HARD], HARD_ERROR, more)


def check(report: Report, name: str, weights: Sequence[Tensor], exact_error: float, more: More) -> None:
    """How wrong the exact tier is; of the others, the values that are off by over 1 % with no bar that covers it."""
    truths = [true_metrics(true_singular_values(weight)) for weight in weights]
    more = {"matrices": len(weights), **more}
    errors = worst_errors(measure(weights, "exact", 1), truths)
    report.row(f"{name}_exact_error", max(errors.values()), exact_error, "relative", errors=errors, **more)
    tiers: tuple[Tier, ...] = ("estimate", "norms")
    for tier in tiers:
        readings = measure(weights, tier, len(weights))
        wrong, missed = 0, Counter[str]()
        for reading, truth in zip(readings, truths, strict=True):
            outside = missed_bars(reading, truth)
            missed.update(outside)
            off = relative_errors(reading, truth)
            wrong += sum(off[metric] > ESTIMATE_ERROR for metric in outside)
        found: dict[str, Any] = {"errors": worst_errors(readings, truths), "outside_their_bars": dict(missed)}
        found["fell_to_exact"] = fell_to_exact(readings, tier)
        report.row(f"{name}_{tier}_wrong", wrong, 0, "values", **found, **more)


def model(report: Report, first_seed: int, batch: int, sample: int, more: More) -> None:
    """The rows of the Llama-2-7B."""
    weights = {
        shape: [make("trained_like", shape, "bfloat16", first_seed + index, "cuda") for index in range(count)]
        for shape, count in MODEL_SHAPES.items()
    }
    rival = sum(len(same) * svdvals_seconds(same[:sample]) for same in weights.values())
    said = {"matrices": sum(MODEL_SHAPES.values()), "batch": batch, "rival": round(rival, 1), **more}
    said["rival_is"] = f"{RIVAL}, extrapolated from {sample} of each shape"
    for tier, limit in MODEL_SECONDS.items():
        for same in weights.values():
            measure(same[:1] if tier == "exact" else same[:batch], tier, batch)  # warms up
        readings: list[Reading] = []

        def whole(tier: Tier = tier, readings: list[Reading] = readings) -> None:
            readings[:] = [reading for same in weights.values() for reading in measure(same, tier, batch)]

        ours = seconds(whole, 1 if tier == "exact" else 3)
        found: dict[str, Any] = {"speedup": round(rival / ours, 1), "fell_to_exact": fell_to_exact(readings, tier)}
        report.row(f"gpu_llama_2_7b_{tier}", round(ours, 4), limit, "seconds", **found, **said)
    for (rows, cols), same in weights.items():
        check(report, f"gpu_llama_2_7b_{rows}x{cols}", same[:1], EXACT_ERROR, more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32, help="matrices of the model measured at once")
    parser.add_argument("--sample", type=int, default=2, help="matrices of each shape that the rival is timed on")
    parser.add_argument("--only", choices=("squares", "model"))
    parser.add_argument("--first-seed", type=int, default=secrets.randbelow(1 << 31))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("spectra_gpu.py: this torch sees no CUDA device; expected one, an H100 for the goals", file=sys.stderr)
        return 1
    report = Report()
    more = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "first_seed": arguments.first_seed}
    if arguments.only != "model":
        squares(report, arguments.first_seed, more)
    if arguments.only != "squares":
        model(report, arguments.first_seed, arguments.batch, arguments.sample, more)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
