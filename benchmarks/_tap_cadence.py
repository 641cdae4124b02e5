"""From which cadence on measuring in the training's loop costs less than shipping, for models of three sizes.

Costs are of one GPU that has all of the model. Spread over several, each has its part of either: it ships its shards,
or measures as many layers as fall to it, which have to be gathered first; that is not counted here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from _tap_inloop import METHODS, gram_float64
from torch import Tensor

Shape = tuple[int, int]
CADENCES = (10, 100, 1000)
FAR = 8.0
"""Times the work of the largest matrix that was run: small ones say nothing of larger ones, a GPU is idle in them."""
SHARE = 0.005
LONGEST_SECONDS, BUDGET_SECONDS = 10.0, 35.0
"""A matrix that is expected to take longer is computed from the nearest that was run, and all when time is up."""


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    matrices: Mapping[Shape, int]
    """What is measured: how many of each shape."""
    other_elements: int
    """Of matrices that are shipped too, but measured by nobody in a loop: embeddings."""

    @property
    def num_elements(self) -> int:
        return self.other_elements + sum(count * rows * cols for (rows, cols), count in self.matrices.items())


def _gpt2(width: int, num_blocks: int, vocabulary: int, context: int) -> Mapping[Shape, int]:
    shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    return dict.fromkeys(shapes, num_blocks)


MODELS = (
    Model("124M", _gpt2(768, 12, 50304, 1024), (50304 + 1024) * 768),
    Model("7B", {(4096, 4096): 4 * 32, (11008, 4096): 2 * 32, (4096, 11008): 32}, 2 * 32000 * 4096),
    Model(
        "70B",
        {(1024, 8192): 2 * 80, (8192, 8192): 2 * 80, (28672, 8192): 2 * 80, (8192, 28672): 80},
        2 * 32000 * 8192,
    ),
)


def work(method: str, shape: Shape) -> float:
    """What its time grows with: the elements, or for a whole spectrum their product with the smaller side."""
    rows, cols = shape
    return float(rows * cols) if method.startswith("σ₁") else float(rows * cols * min(shape))


class Costs:
    """Seconds of each method for one matrix of each shape, run where that is quick enough, else computed."""

    def __init__(self, device: torch.device, longest_seconds: float = LONGEST_SECONDS) -> None:
        self._device = device
        self._longest_seconds = longest_seconds
        self._left_seconds = BUDGET_SECONDS
        self._run: dict[str, dict[Shape, float]] = {method: {} for method in METHODS}

    def seconds(self, method: str, shape: Shape) -> tuple[float, bool]:
        """Of one matrix; and whether that was computed."""
        known = self._run[method]
        if shape not in known:
            expected, is_far = self._computed(method, shape)
            longest = self._left_seconds if is_far else min(self._longest_seconds, self._left_seconds)
            if expected > longest:
                return expected, True
            known[shape] = self._timed(method, shape)
        return known[shape], False

    def _computed(self, method: str, shape: Shape) -> tuple[float, bool]:
        """From the largest that was run; and whether that is too small to tell."""
        known = self._run[method]
        if not known:
            return 0.0, True
        nearest = max(known, key=lambda other: work(method, other))
        times = work(method, shape) / work(method, nearest)
        return known[nearest] * times, times > FAR

    def _timed(self, method: str, shape: Shape) -> float:
        began = time.perf_counter()
        matrix = torch.randn(1, *shape, device=self._device)
        measure = METHODS[method][0]
        small = torch.randn(1, 32, 32, device=self._device)
        measure(small)  # handles and kernels that are loaded once
        taken = [timed(partial(measure, matrix), self._device)]
        if taken[0] < 0.1:
            taken = [timed(partial(measure, matrix), self._device) for _ in range(5)]
        self._left_seconds -= time.perf_counter() - began
        return statistics.median(taken)


def timed(act: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds, with nothing else under way on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def model_seconds(costs: Costs, method: str, model: Model) -> tuple[float, bool]:
    """Of one look at all its matrices; and whether some of it was computed."""
    each = {shape: costs.seconds(method, shape) for shape in sorted(model.matrices, key=lambda s: work(method, s))}
    total = sum(model.matrices[shape] * seconds for shape, (seconds, _) in each.items())
    return total, any(computed for _, computed in each.values())


def core_seconds(model: Model, shape: Shape = (768, 768)) -> float:
    """What an exact measurement takes of one CPU core, elsewhere: computed from one matrix run here."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.randn(1, *shape)
        seconds = min(timed(partial(gram_float64, matrix), torch.device("cpu")) for _ in range(3))
    finally:
        torch.set_num_threads(num_threads)
    whole = sum(count * work("Gram", other) for other, count in model.matrices.items())
    return seconds * whole / work("Gram", shape)


def row(model: Model, way: str, cost_seconds: float, step_seconds: float, **more: object) -> dict[str, object]:
    """What a way costs that is taken every so many steps. `cost_seconds` is the training's, each time."""
    shares = {f"share_every_{every}": cost_seconds / (every * step_seconds) for every in CADENCES}
    least = cost_seconds / (SHARE * step_seconds)
    rounded = {key: float(f"{value:.3g}") for key, value in shares.items()}
    return {
        "name": "cadence",
        "model": model.name,
        "way": way,
        "seconds_each_time": float(f"{cost_seconds:.3g}"),
        "step_seconds": float(f"{step_seconds:.3g}"),
        **rounded,
        "steps_from_which_below_half_a_percent": int(least) + 1,
        **more,
    }
