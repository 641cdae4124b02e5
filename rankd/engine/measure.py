"""The path of a batch: each matrix by the tier asked for, and what that cannot answer by the exact one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rankd.engine.ask import Ask
from rankd.engine.tiers import PLAIN_RANGE, Batch, measure_estimates, measure_exact, measure_norms
from rankd.engine.warm import WarmStarts
from rankd.records import Reading
from rankd.spectrum.estimate import MIN_SIZE

WORK_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
"""Others are widened to float32; so is bfloat16 on a CPU."""


def measure_matrices(
    weights: Sequence[torch.Tensor],
    asks: Sequence[Ask],
    warm: WarmStarts | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Reading]:
    """A Reading of each weight: real tensors of one shape, dtype and device, two or more dimensions taken as (size(0),
    -1), with what is asked of each.

    A matrix goes to the exact tier by itself where its estimate is not good enough: the bar is wider than the
    tolerance, rounding matters to it, or it is so small that nothing is saved. Whatever the tier asked for, all-zero,
    non-finite and empty matrices are exact. `seconds` is each one's share of the time. Raises what `measure_spectrum`
    raises."""
    readings: list[Reading | None] = [None] * len(weights)
    for tier, measure in (("norms", measure_norms), ("estimate", measure_estimates)):
        places = [place for place, ask in enumerate(asks) if ask.tier == tier and _is_worth_it(weights[place], ask)]
        if not places:
            continue
        # On a CPU one by one: several do not fit the cache together, and nothing is saved.
        for part in [places] if weights[0].is_cuda else [[place] for place in places]:
            began = clock()
            kept, batch = _batch(part, weights, asks)
            found = [] if batch is None else list(measure(batch, warm or WarmStarts()))
            seconds = (clock() - began) / len(part)
            for at, reading in zip(kept, found, strict=True):
                readings[at] = None if reading is None else replace(reading, seconds=seconds)
    for place, (weight, ask) in enumerate(zip(weights, asks, strict=True)):
        if readings[place] is None:
            began = clock()
            readings[place] = replace(measure_exact(weight, ask), seconds=clock() - began)
    return [_as_json_can(reading) for reading in readings if reading is not None]


def _as_json_can(reading: Reading) -> Reading:
    """Without numbers that are not finite: norms of float64 weights of 1e308, and their bars, are beyond any float."""
    known = {
        name: value is not None and all(map(math.isfinite, (value, *reading.bars.get(name, ()))))
        for name, value in reading.metrics.items()
    }
    metrics = {name: value if known[name] else None for name, value in reading.metrics.items()}
    bars = {name: bar for name, bar in reading.bars.items() if known[name]}
    further = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in reading.further.items()
    }
    return replace(reading, metrics=metrics, bars=bars, further=further)


def _is_worth_it(weight: torch.Tensor, ask: Ask) -> bool:
    if weight.ndim < 2 or weight.is_complex() or weight.numel() == 0:
        return False
    if ask.tier == "norms":
        return True
    rows = weight.shape[0]
    return min(rows, weight.numel() // rows) >= MIN_SIZE and not (ask.reference or ask.extra)


def _batch(places: list[int], weights: Sequence[torch.Tensor], asks: Sequence[Ask]) -> tuple[list[int], Batch | None]:
    """Of these places the finite ones that are not all zero, and their batch; None where there are none."""
    matrices = [weights[place].detach().reshape(weights[place].shape[0], -1) for place in places]
    stack = torch.stack(matrices) if len(matrices) > 1 else matrices[0][None]
    if stack.dtype not in WORK_DTYPES or (stack.dtype == torch.bfloat16 and not stack.is_cuda):
        stack = stack.float()
    low, high = torch.aminmax(stack) if len(places) == 1 else torch.aminmax(stack.flatten(1), dim=1)
    peaks = torch.maximum(low.double().neg(), high.double()).view(-1).cpu()
    good = (torch.isfinite(peaks) & (peaks > 0)).nonzero().view(-1).tolist()
    if not good:
        return [], None
    if len(good) < len(places):
        stack, peaks = stack[good], peaks[good]
    scales = torch.exp2((torch.frexp(peaks).exponent - 1).double())
    if PLAIN_RANGE[0] <= float(peaks.min()) and float(peaks.max()) <= PLAIN_RANGE[1]:
        scales.fill_(1.0)
    else:
        stack = (stack.double() / scales[:, None, None].to(stack.device)).to(stack.dtype)  # by a power of two: exactly
    kept = [places[index] for index in good]
    return kept, Batch(stack, scales.numpy(), [asks[place] for place in kept])
