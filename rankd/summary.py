"""A spectrum for looking at, small enough to keep for every measurement: the largest values and a histogram."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankd.records import Spectrum

NUM_TOP = 16
NUM_BINS = 32
MAX_DECADES = 16.0
"""Values this far below the largest are rounding; they count in the lowest bin."""

_LOWEST = 0.02
"""Of an estimate's values: so many are counted in the lowest bin whatever they are. Its curve is smooth, and has a tail
below the lowest value that says nothing."""

Values = npt.NDArray[np.float64]

_HEAD = struct.Struct("<BBff")


@dataclass(frozen=True, slots=True)
class Summary:
    """`top`: the largest singular values, descending, in the weights' unit, to float32's precision. `counts`: how many
    of all values lie in each of NUM_BINS equal bins of log10 σ between `low` and `high`; zeros count in the lowest."""

    top: tuple[float, ...]
    low: float
    high: float
    counts: tuple[int, ...]


def summarise(spectrum: Spectrum) -> bytes:
    """`spectrum` packed: about 200 bytes; b"" where there is nothing to look at (non-finite, all-zero, empty)."""
    values = spectrum.singular_values
    if not spectrum.finite or spectrum.scale == 0 or len(values) == 0 or values[0] == 0:
        return b""
    # The scale is kept out of the arithmetic until the end: weights of 1e30 square to beyond any float.
    high = np.log10(values[0])
    logs = np.log10(np.maximum(values, values[0] * 10.0**-MAX_DECADES))
    low = min(float(logs[-1]), float(high) - 1e-3)
    counts, _ = np.histogram(logs, bins=NUM_BINS, range=(low, float(high)))
    shift = float(np.log10(spectrum.scale))
    with np.errstate(over="ignore"):
        top = (values[:NUM_TOP] * spectrum.scale).astype("<f4")
    head = _HEAD.pack(len(top), NUM_BINS, low + shift, float(high) + shift)
    return head + top.tobytes() + counts.astype("<u4").tobytes()


def summarise_curve(largest: float, above: Values, log_values: Values, size: int, scale: float) -> bytes:
    """The same of an estimate, in units of `scale`: σ₁ alone is known, and at each of the ascending natural logarithms
    `log_values` how many values lie `above`, of `size`."""
    if largest <= 0:
        return b""
    high = math.log(largest)
    below = np.maximum.accumulate(size - above)
    low = max(float(np.interp(_LOWEST * size, below, log_values)), high - MAX_DECADES * math.log(10))
    low = min(low, high - 1e-3)
    edges = np.linspace(low, high, NUM_BINS + 1)
    at_edges = np.interp(edges, log_values, below)
    at_edges *= size / at_edges[-1]  # a smooth curve reaches beyond the largest value, too
    at_edges[0] = 0.0
    counts = np.diff(np.rint(at_edges))
    shift = math.log10(scale)
    head = _HEAD.pack(1, NUM_BINS, low / math.log(10) + shift, high / math.log(10) + shift)
    with np.errstate(over="ignore"):
        top = np.array([largest * scale]).astype("<f4")
    return bytes(head + top.tobytes() + counts.astype("<u4").tobytes())


def read_summary(packed: bytes) -> Summary:
    """What `summarise` packed. ValueError for anything else."""
    if len(packed) < _HEAD.size:
        raise ValueError(f"a summary of {len(packed)} bytes; expected {_HEAD.size} or more")
    num_top, num_bins, low, high = _HEAD.unpack_from(packed)
    if len(packed) != _HEAD.size + 4 * (num_top + num_bins):
        raise ValueError(f"a summary of {len(packed)} bytes; expected {_HEAD.size + 4 * (num_top + num_bins)}")
    top = np.frombuffer(packed, "<f4", num_top, _HEAD.size)
    counts = np.frombuffer(packed, "<u4", num_bins, _HEAD.size + 4 * num_top)
    return Summary(tuple(top.tolist()), low, high, tuple(counts.tolist()))
