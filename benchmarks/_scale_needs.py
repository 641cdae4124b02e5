"""What models need of a daemon, computed: cores or GPUs that measure, network, cores that take in, memory, daemons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from _scale_fit import Fit, Shape

from rankd.config import Limits
from rankd_client.wire import DEFAULT_CHUNK_BYTES

CADENCES = (100, 1000)
PROCESSES = (1, 8, 64, 512)
TIERS = ("norms", "estimate", "exact")

FULL = 0.5
"""Of the slots, the most that is asked of them: up to it the oldest reading was measured within an interval, on a
machine that others used too (rows `lag`; at 0.8, within 1.3)."""

FULL_THREAD = 0.7
"""The same of the thread that takes in: beyond it clients wait for credit."""

# Measured earlier on one H100 80GB with torch 2.11, with the matrices in the GPU's memory: README.md, "What measuring
# itself costs" (benchmarks/spectra_gpu.py). The gain of two is of benchmarks/two_gpus.py.
H100_LLAMA_2_7B_SECONDS = {"norms": 0.25, "estimate": 0.94, "exact": 27.7}
H100_4096_EXACT_SECONDS = 0.121
H100_GAIN_OF_TWO = {"exact": 1.94, "estimate": 1.54}

ASSUMED_COPY_BYTES_PER_SECOND = 10e9
"""From the host's memory to a GPU's: a guess. From an H100 to pageable memory 1.1 GB/s was seen, to pinned 54."""


LEAST_CREDIT_BYTES = 4 << 20
"""Of a connection (docs/operations.md, How much it holds); 512 of them want a `total_credit_bytes` of 2 GiB."""


@dataclass(frozen=True)
class Model:
    """The matrices of its blocks, and an assumed time of one training step. Embeddings and head are left out."""

    name: str
    matrices: Mapping[Shape, int]
    step_seconds: float

    @property
    def num_matrices(self) -> int:
        return sum(self.matrices.values())

    @property
    def num_bytes(self) -> int:
        """In bfloat16."""
        return sum(2 * rows * cols * count for (rows, cols), count in self.matrices.items())

    @property
    def largest_bytes(self) -> int:
        return max(2 * rows * cols for rows, cols in self.matrices)


def _llama(name: str, blocks: int, width: int, key_width: int, inner: int, step_seconds: float) -> Model:
    """q, o; k, v; gate, up; down."""
    shapes = [(width, width)] * 2 + [(key_width, width)] * 2 + [(inner, width)] * 2 + [(width, inner)]
    return Model(name, {shape: blocks * shapes.count(shape) for shape in dict.fromkeys(shapes)}, step_seconds)


MODELS = (
    _llama("Llama-2-7B", 32, 4096, 4096, 11008, 2.0),
    _llama("Llama-3-70B", 80, 8192, 1024, 28672, 4.0),
    _llama("Llama-3.1-405B", 126, 16384, 1024, 53248, 10.0),
)


@dataclass(frozen=True)
class Measuring:
    """One look at all matrices within an interval. None where one matrix alone takes longer than that."""

    model: Model
    tier: str
    every_steps: int
    core_seconds: float
    slots: int | None
    gpu_seconds: float
    gpus: int | None
    is_gpu_measured: bool
    slot_bytes: int
    """Memory of one slot, at most: the largest matrix in float64, its Gram matrix, and a solver's three copies."""


def measuring(fit: Fit, model: Model, tier: str, every_steps: int) -> Measuring:
    interval = every_steps * model.step_seconds
    growth = fit.measuring[tier]
    core_seconds = sum(count * growth.seconds(shape) for shape, count in model.matrices.items())
    longest = max(map(growth.seconds, model.matrices))
    gpu_seconds, longest_on_gpu = _gpu(model, tier)
    gain = H100_GAIN_OF_TWO.get(tier, H100_GAIN_OF_TWO["estimate"]) / 2
    gpus = 1 if gpu_seconds <= FULL * interval else math.ceil(gpu_seconds / (FULL * interval * gain))
    rows, cols = max(model.matrices, key=lambda shape: shape[0] * shape[1])
    return Measuring(
        model,
        tier,
        every_steps,
        core_seconds,
        math.ceil(core_seconds / (FULL * interval)) if longest < interval else None,
        gpu_seconds,
        gpus if longest_on_gpu < interval else None,
        model is MODELS[0],
        8 * (rows * cols + 4 * min(rows, cols) ** 2),
    )


def gpu_matrix_seconds(shape: Shape, tier: str) -> float:
    """On an H100, without the copy to it. Exact: the time of 4096 × 4096 and, for what is longer, the rest of the time
    of a Llama-2-7B, both growing as n³ from there (measured below 4096 as n^1.7: launches; all is work beyond). The
    others: as their elements."""
    short, long = sorted(shape)
    if tier != "exact":
        return H100_LLAMA_2_7B_SECONDS[tier] * 2 * short * long / MODELS[0].num_bytes
    squares = sum(count for (rows, cols), count in MODELS[0].matrices.items() if rows == cols)
    oblong = MODELS[0].num_matrices - squares
    more = (H100_LLAMA_2_7B_SECONDS["exact"] - MODELS[0].num_matrices * H100_4096_EXACT_SECONDS) / oblong
    for_length = more * (long / short - 1) / (11008 / 4096 - 1)
    power = 3.0 if short > 4096 else 1.66
    return (H100_4096_EXACT_SECONDS + for_length) * math.pow(short / 4096, power)


def _gpu(model: Model, tier: str) -> tuple[float, float]:
    """Seconds of one GPU for all, and for the matrix that takes longest; with their copies to it."""

    def seconds(shape: Shape) -> float:
        return gpu_matrix_seconds(shape, tier) + 2 * shape[0] * shape[1] / ASSUMED_COPY_BYTES_PER_SECOND

    return sum(count * seconds(shape) for shape, count in model.matrices.items()), max(map(seconds, model.matrices))


@dataclass(frozen=True)
class TakingIn:
    """One push of all matrices in each interval, by so many processes with equal parts of each."""

    model: Model
    processes: int
    every_steps: int
    num_messages: int
    bits_per_second: float
    cores: float
    """Beside those that measure."""
    daemons: int
    bytes_at_once: int
    """Of a daemon's memory, where all processes push everything in one step."""
    bytes_spread: int
    """The same where layers take turns over the interval (max_push_bytes)."""
    max_push_bytes: int
    """Of one process, where each step pushes its share of the interval's; at least the largest part of a layer."""


def taking_in(fit: Fit, model: Model, processes: int, every_steps: int) -> TakingIn:
    interval = every_steps * model.step_seconds
    messages = processes * sum(
        count * math.ceil(2 * rows * cols / processes / DEFAULT_CHUNK_BYTES)
        for (rows, cols), count in model.matrices.items()
    )
    seconds = fit.intake_seconds(
        gb_with_keys=model.num_bytes / 1e9,
        messages=messages,
        matrices=model.num_matrices,
        process_seconds=processes * interval,
        seconds=interval,
    )
    limits = Limits()
    credit = min(processes * limits.credit_bytes, max(limits.total_credit_bytes, processes * LEAST_CREDIT_BYTES))
    unfinished = min(model.num_bytes, max(limits.max_assembly_bytes, 2 * model.largest_bytes))
    waiting = min(model.num_bytes, max(limits.max_mailbox_bytes, 2 * model.largest_bytes))
    held = fit.rss_bytes + credit + unfinished
    part = model.largest_bytes / processes
    return TakingIn(
        model,
        processes,
        every_steps,
        messages,
        8 * model.num_bytes / interval,
        seconds / interval,
        max(1, math.ceil(seconds * fit.busiest_share / interval / FULL_THREAD)),
        held + model.num_bytes,
        held + waiting,
        math.ceil(max(part, model.num_bytes / processes / every_steps)),
    )
