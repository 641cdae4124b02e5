"""Rows of one-byte elements with a scale behind each: how large what they stand for is. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rankd_client.wire import SCALE_BYTES


def _float8_magnitudes(mantissa_bits: int, bias: int) -> npt.NDArray[np.float32]:
    """What the codes 0 to 127 are worth, as if none of them stood for NaN or infinity."""
    codes = np.arange(128)
    exponents, mantissas = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    significands = np.where(exponents > 0, mantissas + (1 << mantissa_bits), mantissas)
    values: npt.NDArray[np.float64] = np.ldexp(significands, np.maximum(exponents, 1) - bias - mantissa_bits)
    return values.astype(np.float32)


MAGNITUDES = {
    "float8_e4m3fn": _float8_magnitudes(3, 7),
    "float8_e5m2": _float8_magnitudes(2, 15),
    "int8": np.arange(129, dtype=np.float32),
}
"""By dtype: of the codes 0 to 127, which are ordered like them, NaN above infinity; and of int8's -128."""

MAGNITUDES["float8_e4m3fn"][127] = np.nan
MAGNITUDES["float8_e5m2"][124:] = np.inf, np.nan, np.nan, np.nan


def largest_magnitude(rows: npt.NDArray[np.uint8], dtype: str) -> float:
    """Of all element × scale, rounded to float32, in `rows` (n, elements and scale): what is beyond float32 is
    infinite, and NaN is where a scale or an element is no number. Nothing as large as `rows` is made."""
    width = rows.shape[1] - SCALE_BYTES
    scales = np.ascontiguousarray(rows[:, width:]).view("<f4")[:, 0]
    elements = rows[:, :width]
    signed, unsigned = elements.view(np.int8), elements
    if dtype == "int8":
        codes = np.maximum(signed.max(axis=1).astype(np.int16), -signed.min(axis=1).astype(np.int16))
    else:  # a sign and a magnitude: the largest of the positive ones, and of the negative ones, which come above them
        codes = np.maximum(signed.max(axis=1), (unsigned.max(axis=1) & 0x7F).astype(np.int8)).astype(np.int16)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return float(np.max(MAGNITUDES[dtype][codes] * np.abs(scales)))  # rounding keeps their order
