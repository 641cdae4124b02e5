"""About how many bytes of the file a row takes: what is counted for the run that had it written."""

from __future__ import annotations

from math import ceil

MEASUREMENT_BYTES = 120
"""Of a row with the numbers that every version has columns for, and of its entry in the index;
`benchmarks/history.py` prints what a row has in all."""

NUMBER_BYTES = 9
"""Of one that has its column since version 3, and is not NULL."""

ALERT_BYTES = 100
"""Of all columns but layer and body."""

TYPICAL_ALERT_BYTES = 700
"""Of all columns, where names are short."""

SPECTRUM_BYTES, KIND_BYTES = 20, 60
"""Of all else in such a row, and of its entries in indexes: numbers and lengths, as SQLite packs them."""

MAX_INLINE_BYTES = 1000
"""SQLite puts most of a row that is longer on pages of its own, whole ones."""
PAGE_BYTES = 4096


def measurement_bytes(num_numbers: int, extra_bytes: int, summary_bytes: int) -> int:
    """Of a measurement with its spectrum; 0 where it has none. `num_numbers`: of rankd.store.columns.OWN_NUMBERS."""
    own_bytes = MEASUREMENT_BYTES + NUMBER_BYTES * num_numbers
    if not extra_bytes and not summary_bytes:
        return own_bytes
    spectrum_bytes = _row_bytes(SPECTRUM_BYTES + summary_bytes) if summary_bytes else 0
    return _row_bytes(own_bytes + extra_bytes) + spectrum_bytes


def alert_bytes(layer_bytes: int, body_bytes: int) -> int:
    return _row_bytes(ALERT_BYTES + layer_bytes + body_bytes)


def kind_bytes(text_bytes: int) -> int:
    """Its texts stand in the index too."""
    return KIND_BYTES + 2 * text_bytes


def _row_bytes(payload_bytes: int) -> int:
    if payload_bytes <= MAX_INLINE_BYTES:
        return payload_bytes
    return MAX_INLINE_BYTES // 2 + ceil(payload_bytes / PAGE_BYTES) * PAGE_BYTES
