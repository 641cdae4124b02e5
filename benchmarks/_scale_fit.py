"""What was measured of a daemon, as a few numbers: seconds of measuring by tier and shape, seconds of taking in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

Shape = tuple[int, int]
FILE = Path(__file__).parent / "scale-fit.json"

INTAKE = ("gb", "gb_with_keys", "messages", "matrices", "process_seconds", "seconds")
"""What a daemon's seconds beside measuring grow with: GB of payload over TCP, in the clear or encrypted; messages of
trainers (a shard, or a chunk of one); matrices that were measured, judged, recorded and published; connected processes
× seconds; and seconds that it runs."""


class Growth(NamedTuple):
    """Seconds of one core for a matrix: overhead + seconds_1k × (short / 1024)^power × (long / short)^stretch."""

    overhead: float
    seconds_1k: float
    power: float
    stretch: float

    def seconds(self, shape: Shape) -> float:
        short, long = sorted(shape)
        grown = math.pow(short / 1024, self.power) * math.pow(long / short, self.stretch)
        return self.overhead + self.seconds_1k * grown


class LagRow(NamedTuple):
    """What was sustained, in squares of `side` a second, and at so many times that ("0.8") how old the oldest reading
    was when it was heard of, in turns of all layers: intervals, or beyond 1 what measuring each once takes."""

    tier: str
    cores: int
    side: int
    sustained: float
    oldest: Mapping[str, float]
    rss_bytes: int


@dataclass(frozen=True)
class Fit:
    """`intake`: CPU seconds for one of each of INTAKE. `busiest_share`: of them, those of the thread that takes most.
    `rss_bytes`: resident at rest. `largest`: side of the largest matrix that was measured; the rest is extrapolated."""

    machine: str
    measuring: Mapping[str, Growth]
    intake: Mapping[str, float]
    busiest_share: float
    rss_bytes: int
    largest: Mapping[str, int]
    errors: Mapping[str, float]
    """The worst of loads that were predicted, over what was measured then, less 1: of measuring, by tier, and of
    "intake"."""
    lags: Sequence[LagRow]

    def intake_seconds(self, **of: float) -> float:
        """CPU seconds, by names of INTAKE."""
        return sum(self.intake[name] * number for name, number in of.items())


def fit_growth(seen: Mapping[Shape, float], tiny: float) -> Growth:
    """Least squares of logarithms. `seen`: seconds by shape, squares of two sizes and something oblong among them;
    `tiny`: of a matrix so small that they are overhead."""
    sides = [(min(shape), max(shape)) for shape in seen]
    x = [(1.0, math.log(short / 1024), math.log(long / short)) for short, long in sides]
    y = [math.log(max(seconds - tiny, 0.1 * seconds)) for seconds in seen.values()]
    log_seconds, power, stretch = map(float, np.linalg.lstsq(np.array(x), np.array(y), rcond=None)[0])
    return Growth(tiny, math.exp(log_seconds), power, stretch)


def fit_intake(rows: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> dict[str, float]:
    """Least squares of relative errors, none below 0: what would be, is left out. `rows` by names of INTAKE; what none
    has, is 0."""
    left = [name for name in INTAKE if any(row.get(name) for row in rows)]
    found: dict[str, float] = {}
    while left:
        pairs = list(zip(rows, seconds, strict=True))
        matrix = np.array([[row.get(name, 0.0) / took for name in left] for row, took in pairs])
        scale = np.abs(matrix).max(axis=0)
        values = np.linalg.lstsq(matrix / scale, np.ones(len(rows)), rcond=None)[0] / scale
        found = dict(zip(left, map(float, values), strict=True))
        lowest = min(left, key=lambda name: found[name])
        if found[lowest] >= 0:
            break
        left.remove(lowest)
        found.pop(lowest)
    return {name: found.get(name, 0.0) for name in INTAKE}


def store(fit: Fit, path: Path = FILE) -> None:
    content = {**asdict(fit), "measuring": {tier: growth._asdict() for tier, growth in fit.measuring.items()}}
    content["lags"] = [row._asdict() for row in fit.lags]
    path.write_text(json.dumps(_rounded(content), indent=2) + "\n")


def load(path: Path = FILE) -> Fit:
    """Raises OSError, ValueError or TypeError where there is none."""
    content = json.loads(path.read_text())
    measuring = {tier: Growth(**growth) for tier, growth in content.pop("measuring").items()}
    lags = [LagRow(**row) for row in content.pop("lags")]
    return Fit(measuring=measuring, lags=lags, **content)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
