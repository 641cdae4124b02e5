"""Do the bars hold? The share of true values that lie inside them, over families of spectra × shapes × dtypes × seeds.

Each matrix is measured in the tiers `norms` and `estimate`; the truth is float64 `svdvals` of the very matrix. For each
tier and family: `coverage`, the upper Wilson limit of the share inside, of the worst metric, at least 0.95; `width`,
the median of (high - low) / value, of the worst metric, of estimates at most 0.02; `to_exact`, the share that fell to
the exact tier and so has no bars; and the worst error of those. A metric without a bar in a reading that is not exact
claims to be exact.

`--plant-shrink 0.3` and `--plant-shift 1` measure the measure: with such wrong bars it has to exit with 1.
Seeds are fresh unless `--first-seed` repeats those of a row.
"""

from __future__ import annotations

import argparse
import math
import secrets
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from _families import DTYPES, FAMILIES, Shape, make
from _report import Report
from _truth import Bar, bars_of, contains, relative_errors, true_metrics, true_singular_values
from torch import Tensor

from rankd.engine import Ask, measure_matrices
from rankd.records import Reading

BARRED_TIERS = ("norms", "estimate")
SHAPES = ["256x256", "384x1024", "1024x256", "768x768:10"]
COVERAGE, EXACT_ERROR = 0.95, 5e-5
WIDTHS = {"estimate": 0.02, "norms": 1.0}
"""Bars of the norms tier fail once in 10,000 times and rest on a few steps: how wide they are is for the reader."""
Z_95 = 1.959964


@dataclass(frozen=True)
class Plant:
    """A fault for this benchmark to find: bars shrunk about their value, then moved by a multiple of their width."""

    shrink: float = 1.0
    shift: float = 0.0

    def spoil(self, bar: Bar, value: float) -> Bar:
        low, high = (value + self.shrink * (end - value) for end in bar)
        moved = self.shift * (high - low)
        return low + moved, high + moved


@dataclass
class Tally:
    """What came of the readings of one tier and family."""

    plant: Plant
    tier: str
    inside: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    widths: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    exact_errors: list[float] = field(default_factory=list)
    misses: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    num_readings: int = 0

    def add(self, reading: Reading, truths: dict[str, float], group: str) -> None:
        self.num_readings += 1
        if reading.tier == "exact":
            self.exact_errors.append(max(relative_errors(reading, truths).values()))
            return
        for name, value, bar in bars_of(reading):
            low, high = self.plant.spoil(bar, value)
            held = contains((low, high), truths[name])
            self.inside[name].append(held)
            self.widths[name].append((high - low) / value)
            self.misses[f"{name} {group}"] += not held

    def report(self, report: Report, name: str, first_seed: int, unit: str = "share") -> None:
        if self.inside:
            upper = {metric: wilson_upper(sum(held), len(held)) for metric, held in self.inside.items()}
            worst = min(upper, key=lambda metric: upper[metric])
            shares = {metric: round(sum(held) / len(held), 4) for metric, held in self.inside.items()}
            more = {"metric": worst, "inside": shares, "first_seed": first_seed, "bars": len(self.inside[worst])}
            misses = dict(sorted(self.misses.items(), key=lambda item: -item[1])[:3])
            more["most_misses"] = {group: count for group, count in misses.items() if count}
            report.row(f"{name}_coverage", round(upper[worst], 4), COVERAGE, unit, at_least=True, **more)
            medians = {metric: statistics.median(widths) for metric, widths in self.widths.items()}
            worst = max(medians, key=lambda metric: medians[metric])
            rounded = {metric: float(f"{median:.3g}") for metric, median in medians.items()}
            report.row(f"{name}_width", rounded[worst], WIDTHS[self.tier], unit, metric=worst, medians=rounded)
        share = len(self.exact_errors) / self.num_readings
        report.row(f"{name}_to_exact", round(share, 4), 1.0, unit, readings=self.num_readings)
        if self.exact_errors:
            report.row(f"{name}_exact_error", max(self.exact_errors), EXACT_ERROR, "relative")


def wilson_upper(inside: int, count: int) -> float:
    """The upper end of the 95 % interval of a share (Wilson 1927, "Probable inference")."""
    share, z2 = inside / count, Z_95**2
    spread = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (share + z2 / (2 * count) + spread) / (1 + z2 / count)


def parse_shape(text: str, seeds: int) -> tuple[Shape, int]:
    """`ROWSxCOLS` or `ROWSxCOLS:SEEDS`, the latter at most as many as the others have."""
    sizes, _, own = text.partition(":")
    rows, cols = map(int, sizes.split("x"))
    return (rows, cols), min(int(own or seeds), seeds)


def groups(arguments: argparse.Namespace, family: str) -> Iterator[tuple[str, list[str], list[Tensor]]]:
    """Batches of matrices of one shape and dtype, with its name and their keys."""
    for text in arguments.shapes:
        shape, seeds = parse_shape(text, arguments.seeds)
        for dtype in arguments.dtypes:
            group = f"{text.partition(':')[0]} {dtype}"
            for start in range(0, seeds, arguments.batch):
                numbers = range(start, min(start + arguments.batch, seeds))
                keys = [f"{arguments.first_seed}/{family}.{number}/{group}" for number in numbers]
                made = [(arguments.first_seed << 32) + zlib.crc32(key.encode()) for key in keys]
                yield group, keys, [make(family, shape, dtype, seed, arguments.device) for seed in made]


def judge_family(arguments: argparse.Namespace, family: str, report: Report) -> None:
    plant = Plant(arguments.plant_shrink, arguments.plant_shift)
    tallies = {tier: Tally(plant, tier) for tier in arguments.tier}
    for group, keys, weights in groups(arguments, family):
        truths = [true_metrics(true_singular_values(weight)) for weight in weights]
        dtype = group.split()[-1]
        for tier, tally in tallies.items():
            asks = [Ask(tier=tier, key=key, wire_dtype=dtype, source_dtype=dtype) for key in keys]
            for reading, truth in zip(measure_matrices(weights, asks), truths, strict=True):
                tally.add(reading, truth, group)
    for tier, tally in tallies.items():
        tally.report(report, f"bars_{tier}_{family}", arguments.first_seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="matrices of each family, shape and dtype")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROWSxCOLS[:SEEDS]")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--tier", nargs="+", default=list(BARRED_TIERS), choices=BARRED_TIERS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16, help="matrices measured at once")
    parser.add_argument("--first-seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--plant-shrink", type=float, default=1.0, help="a fault: bars of this share of their width")
    parser.add_argument("--plant-shift", type=float, default=0.0, help="a fault: bars moved by this share of it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    for family in arguments.families:
        judge_family(arguments, family, report)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
