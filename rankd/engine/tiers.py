"""What each tier makes of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rankd import metrics
from rankd.engine.ask import Ask
from rankd.engine.warm import WarmStarts
from rankd.parts.lora import lora_core
from rankd.records import Reading, Spectrum, unmeasured_keys
from rankd.spectrum import measure_spectrum, norms
from rankd.spectrum.estimate import Estimates, estimate
from rankd.spectrum.krylov import Operator
from rankd.spectrum.noise import Sizes, floors, is_scaled, measure_sizes, shrink
from rankd.summary import summarise, summarise_curve

Values = npt.NDArray[np.float64]

NOISE_TOLERANCE = 0.005
"""Relative change of the effective rank by rounding from which on an estimate, which cannot correct it, does not
serve."""

SMALL, SMALL_TOLERANCE = 1024, 0.01
"""Up to this short side the exact tier costs no more than the many steps that led to a bar wider than this
half-width."""

NORM_ERROR = 1e-6
"""Of a Frobenius norm, relative: rows are summed in float32, in pieces. 4e-7 was the most that was seen."""

NOISE_SEEN = 1e-3
"""From which on the effective rank has a bar from the corrected to the raw value."""

PLAIN_RANGE = (2.0**-20, 2.0**20)
"""Of largest magnitudes: within, sums of squares in float32 are far from its ends, and no copy is made to scale."""

INSIDE_NOISE = 0.1
"""From which on a row says that it is inside the noise."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Finite matrices (B, m, n), none all zero, in units of `scales` (B,)."""

    matrices: torch.Tensor
    scales: Values
    asks: Sequence[Ask]

    def measure_sizes(self) -> tuple[Values, Sizes]:
        """(B,) Frobenius norms, and what rounding noise follows from."""
        return _sizes(self.matrices, self.asks, self.scales)


def _sizes(matrices: torch.Tensor, asks: Sequence[Ask], scales: Values) -> tuple[Values, Sizes]:
    frobenius, sizes = measure_sizes(matrices, any(is_scaled(ask.wire_dtype, ask.source_dtype) for ask in asks))
    for place, (ask, scale) in enumerate(zip(asks, scales, strict=True)):
        if ask.row_peaks is not None:
            peaks = ask.row_peaks.double() / scale
            sizes.peak[place], sizes.peaks[place] = float(peaks.max()), float(torch.linalg.vector_norm(peaks))
    return frobenius, sizes


def measure_exact(weight: torch.Tensor, ask: Ask) -> Reading:
    """By its whole spectrum; the effective rank without the rounding noise of the wire's dtype."""
    spectrum = measure_spectrum(weight, ask.reference)
    values = metrics.compute_metrics(spectrum, ask.extra)
    reading = Reading(values, spectrum.method, finite=spectrum.finite)
    if not spectrum.finite or spectrum.scale == 0:
        nothing = unmeasured_keys(spectrum.finite)
        return replace(reading, zero=spectrum.finite and weight.numel() > 0, further=nothing)
    scale = 1.0 if PLAIN_RANGE[0] < spectrum.scale < PLAIN_RANGE[1] else spectrum.scale
    wide = weight.detach().reshape(1, spectrum.rows, spectrum.cols).to(torch.float64 if scale != 1 else torch.float32)
    _, sizes = _sizes(wide if scale == 1 else wide / scale, [ask], np.array([scale]))
    wire, source = (float(floor[0]) for floor in _floors(sizes, ask, np.array([scale])))
    further: dict[str, Any] = {**_noise_keys(wire * scale, source * scale), "error_bound": spectrum.error}
    bars: dict[str, tuple[float, float]] = {}
    if wire > 0:
        values, bars, noise = _without_noise(values, spectrum, wire * (scale / spectrum.scale))
        further |= noise
    return replace(reading, metrics=values, bars=bars, further=further, summary=summarise(spectrum))


def _without_noise(
    values: Mapping[str, float | None], spectrum: Spectrum, floor: float
) -> tuple[dict[str, float | None], dict[str, tuple[float, float]], dict[str, Any]]:
    """Metrics, bars and further keys with the effective rank and nuclear norm of what is left of the singular values.
    `floor` in the spectrum's unit."""
    left = shrink(spectrum.singular_values, floor, spectrum.rows, spectrum.cols)
    # Where all is noise nothing is known but that: the raw value stands, and says so.
    seen = replace(spectrum, singular_values=left) if left.any() else spectrum
    corrected: dict[str, float | None] = dict(values)
    bars, further = {}, {}
    for name in ("effective_rank", "effective_rank_ratio", "nuclear_norm"):
        raw, value = values[name], metrics.METRICS[name](seen)
        corrected[name] = value
        further[f"{name}_raw"] = raw
        if raw is not None and abs(raw - value) > NOISE_SEEN * raw:
            bars[name] = (min(raw, value), max(raw, value))
    before, after = values["effective_rank"] or 1.0, corrected["effective_rank"] or 1.0
    further["inside_noise"] = not left.any() or abs(before - after) > INSIDE_NOISE * before
    return corrected, bars, further


def measure_norms(batch: Batch, warm: WarmStarts) -> Iterator[Reading]:
    """‖W‖_F exactly, σ₁ and stable rank between their bounds."""
    frobenius, sizes = batch.measure_sizes()
    operator = Operator(batch.matrices)
    keys = [ask.key for ask in batch.asks]
    bounds, vectors = norms.measure_norms(operator, keys, [warm.get(key) for key in keys])
    for key, vector in zip(keys, vectors.cpu(), strict=True):
        warm.put(key, vector)
    ends = torch.stack([bounds.value, bounds.low, bounds.high], dim=1).tolist()
    wires, sources = _floors_of(sizes, batch)
    method = f"golub_kahan_{operator.device.type}"
    for place, (scale, norm, (value, low, high)) in enumerate(zip(batch.scales.tolist(), frobenius, ends, strict=True)):
        value, high = min(value, float(norm)), min(high, float(norm) * (1 + operator.slack))
        values, bars = _norm_metrics(float(norm), value, min(low, value), high, scale)
        noise = _noise_keys(float(wires[place]) * scale, float(sources[place]) * scale)
        yield Reading(dict.fromkeys(metrics.METRICS) | values, method, "norms", bars, further=noise)


def _norm_metrics(
    norm: float, value: float, low: float, high: float, scale: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Values and bars. σ₁ is taken for its lower bound, which is close; the upper one is a promise."""
    values = {"frobenius_norm": norm * scale, "spectral_norm": value * scale, "stable_rank": (norm / value) ** 2}
    bars = {"spectral_norm": (low * scale, high * scale), "stable_rank": ((norm / high) ** 2, (norm / low) ** 2)}
    bars["frobenius_norm"] = norm * scale * (1 - NORM_ERROR), norm * scale * (1 + NORM_ERROR)
    return values, bars


def measure_estimates(batch: Batch, warm: WarmStarts) -> Iterator[Reading | None]:
    """All metrics with bars; None where the exact tier has to be asked."""
    frobenius, sizes = batch.measure_sizes()
    operator = Operator(batch.matrices)
    _, rows, cols = batch.matrices.shape
    most = SMALL_TOLERANCE if min(rows, cols) <= SMALL else math.inf
    tolerances = [min(ask.tolerance, most) for ask in batch.asks]
    found = estimate(operator, frobenius, [ask.key for ask in batch.asks], tolerances)
    wires, sources = _floors_of(sizes, batch)
    for place, scale in enumerate(batch.scales.tolist()):
        effect = _noise_effect(found, place, float(wires[place]), float(frobenius[place]), min(rows, cols))
        if not found.width[place] <= tolerances[place] or effect > NOISE_TOLERANCE:
            yield None
            continue
        noise = _noise_keys(float(wires[place]) * scale, float(sources[place]) * scale)
        yield _estimated(found, place, frobenius, scale, effect, noise, (rows, cols), operator)


def _estimated(
    found: Estimates,
    place: int,
    frobenius: Values,
    scale: float,
    effect: float,
    noise: dict[str, Any],
    shape: tuple[int, int],
    operator: Operator,
) -> Reading:
    unit = {name: scale if name in ("spectral_norm", "nuclear_norm") else 1.0 for name in found.values}
    values: dict[str, float | None] = {name: float(ends[place]) * unit[name] for name, ends in found.values.items()}
    bars = {
        name: (float(found.lows[name][place]) * unit[name], float(found.highs[name][place]) * unit[name])
        for name in found.values
    }
    for name in ("effective_rank", "nuclear_norm"):
        low, high = bars[name]
        bars[name] = (low * (1 - effect), high)
    for name, random in _random(*shape).items():
        values[f"{name}_ratio"] = float(found.values[name][place]) / random
        bars[f"{name}_ratio"] = (bars[name][0] / random, bars[name][1] / random)
    values["frobenius_norm"] = norm = float(frobenius[place]) * scale
    bars["frobenius_norm"] = norm * (1 - NORM_ERROR), norm * (1 + NORM_ERROR)
    log_values = found.log_x / 2 + math.log(frobenius[place])
    largest = float(found.values["spectral_norm"][place])
    summary = summarise_curve(largest, found.curve[place], log_values, min(shape), scale)
    method = f"hutch_golub_kahan_{operator.device.type}"
    return Reading(dict.fromkeys(metrics.METRICS) | values, method, "estimate", bars, further=noise, summary=summary)


def _random(rows: int, cols: int) -> dict[str, float]:
    return {
        "effective_rank": metrics.random_effective_rank(rows, cols),
        "stable_rank": metrics.random_stable_rank(rows, cols),
    }


def _noise_effect(found: Estimates, place: int, floor: float, frobenius: float, size: int) -> float:
    """How much of the effective rank rounding may have made, relatively. Shrinking takes about floor²/σ from singular
    values above the floor and all of those below: at most 2 floor Σ floor²/(σ²+floor²) = 2 floor (r − G(floor²))."""
    if floor <= 0:
        return 0.0
    below = size - float(np.interp(2 * math.log(floor / frobenius), found.log_x, found.curve[place]))
    share = 2 * floor * max(below, 0.0) / float(found.values["nuclear_norm"][place])
    return share * (1 + max(math.log(frobenius / floor), 0.0))


def _floors(sizes: Sizes, ask: Ask, scales: Values) -> tuple[Values, Values]:
    """(B,) of the wire, 0 where it adds nothing to the source's own, and of the source; in the matrices' unit."""
    source_dtype = ask.source_dtype or ask.wire_dtype
    return floors(sizes, ask.wire_dtype, scales, source_dtype), floors(sizes, source_dtype, scales)


def _floors_of(sizes: Sizes, batch: Batch) -> tuple[Values, Values]:
    """The same for a batch, whose matrices may come from different dtypes."""
    found = {(ask.wire_dtype, ask.source_dtype): _floors(sizes, ask, batch.scales) for ask in batch.asks}
    pairs = [found[ask.wire_dtype, ask.source_dtype] for ask in batch.asks]
    wires, sources = (np.array([pair[which][place] for place, pair in enumerate(pairs)]) for which in (0, 1))
    return wires, sources


def _noise_keys(wire: float, source: float) -> dict[str, Any]:
    return {"wire_noise_floor": wire, "source_noise_floor": source}


def measure_product(a: torch.Tensor, b: torch.Tensor) -> Reading:
    """Of the m × n matrix b @ a, from its factors a (r, n) and b (m, r) alone. What rounding the factors did to it is
    not known: its noise floors are null."""
    small = measure_spectrum(lora_core(a, b))
    spectrum = replace(small, rows=b.shape[0], cols=a.shape[1])
    reading = Reading(metrics.compute_metrics(spectrum), f"lora_qr+{small.method}", finite=small.finite)
    nothing = {"wire_noise_floor": None, "source_noise_floor": None, "error_bound": spectrum.error}
    zero = small.finite and small.scale == 0
    return replace(reading, zero=zero, further=nothing, summary=summarise(spectrum))
