"""Wide looks at a run, as a chart needs them: one layer over all steps, all layers over bins of steps, spectra."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rankd.records import METRIC_NAMES
from rankd.store.line import Line

if TYPE_CHECKING:
    from rankd.store.reader import Reader

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROLLED_UP = ("stable_rank", "effective_rank", "spectral_norm")

SPECTRA_SLICE = 256

LAST_STEP = (1 << 63) - 1

_POINTS = np.dtype([("n", np.int64), ("step", np.int64), ("value", np.float64)])
_CELLS = np.dtype([("layer_id", np.int64), ("bin", np.int64), ("num", np.int64), ("sum", np.float64)])


@dataclass(frozen=True, slots=True)
class Heatmap:
    """`values[i, j]` is the mean of a metric of `layers[i]` over the measurements with edges[j] <= step < edges[j + 1];
    NaN where there is none. Layers stand in the order in which they were first recorded. The last edge is at most
    2^63 − 1, the last step there can be, and counts in then."""

    layers: tuple[str, ...]
    edges: Ints
    values: Floats


def history(reader: Reader, run: str, layer: str, metric: str, role: str) -> tuple[Ints, Floats]:
    """See Reader.history."""
    if metric not in METRIC_NAMES:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRIC_NAMES)}")
    with reader.one_moment():
        layer_id = reader.layer_id(run, layer, role)
        # NULL as infinity, which no metric is: numbers come fastest without None among them
        columns = f"n, step, ifnull({metric}, 9e999)"
        sql = f"SELECT {columns} FROM measurement WHERE layer_id = ? AND step IS NOT NULL ORDER BY n"
        points = reader.numbers(_POINTS, sql, layer_id)
        n, steps, values = points["n"], points["step"], points["value"]
        went_back = bool((np.diff(steps) <= 0).any())
        line = Line.read(reader, [layer_id], int(n[-1])) if went_back else Line(())
    current = line.holds_each(layer, role, n, steps)
    values[np.isinf(values)] = np.nan
    return steps[current], values[current]


def heatmap(reader: Reader, run: str, metric: str, num_bins: int, role: str) -> Heatmap:
    """See Reader.heatmap."""
    if metric not in ROLLED_UP:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(ROLLED_UP)}")
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}: expected at least 1")
    with reader.one_moment():
        found = reader.rows("SELECT run_id, bin_steps, rolled_n FROM run WHERE name = ?", run)
        if not found:
            return Heatmap((), np.zeros(1, np.int64), np.zeros((0, 0)))
        run_id, bin_steps, rolled_n = found[0]
        layers = reader.rows("SELECT layer_id, name FROM layer WHERE run_id = ? AND role = ?", run_id, role)
        rolled_up = f"""
            SELECT layer_id, bin, num_finite, ifnull({metric}_sum, 0) FROM rollup WHERE run_id = ?
        """
        newer = f"""
            SELECT l.layer_id, step / ?, {metric} IS NOT NULL, ifnull({metric}, 0)
            FROM layer l CROSS JOIN measurement m ON m.layer_id = l.layer_id AND m.n > ?
            WHERE l.run_id = ? AND step IS NOT NULL
        """
        cells = [reader.numbers(_CELLS, rolled_up, run_id), reader.numbers(_CELLS, newer, bin_steps, rolled_n, run_id)]
    layers.sort()
    row_of = np.array([layer_id for layer_id, _ in layers])
    edges, values = _binned(np.concatenate(cells), row_of, num_bins, bin_steps)
    return Heatmap(tuple(name for _, name in layers), edges, values)


def _binned(
    cells: npt.NDArray[np.void], row_of: npt.NDArray[np.int_], num_bins: int, bin_steps: int
) -> tuple[Ints, Floats]:
    """Edges in steps and means [layers, at most num_bins] of `cells`, of type _CELLS; `row_of` holds the layer ids in
    order. A cell goes whole into one column, so that columns may be one bin wider than others."""
    cells = cells[np.isin(cells["layer_id"], row_of)]
    if not len(cells):
        return np.zeros(1, np.int64), np.zeros((len(row_of), 0))
    bins = cells["bin"]
    # Before the roll-up a bin is a step: as many as there may be, times the columns, have to stay within 64 bits.
    shift = max(0, (int(bins.max()) - int(bins.min()) + 1).bit_length() + num_bins.bit_length() - 63)
    bins, bin_steps = bins >> shift, bin_steps << shift
    first = int(bins.min())
    num_cells = int(bins.max()) - first + 1
    num_columns = min(num_bins, num_cells)
    place = np.searchsorted(row_of, cells["layer_id"]) * num_columns + (bins - first) * num_columns // num_cells
    size = len(row_of) * num_columns
    count, total = (np.bincount(place, cells[name], size) for name in ("num", "sum"))
    values = np.full(size, np.nan)
    np.divide(total, count, out=values, where=count > 0)
    # the first bin of column j is the least b with b * num_columns // num_cells == j
    edges = [first - (-column * num_cells // num_columns) for column in range(num_columns + 1)]
    steps = np.array([min(edge * bin_steps, LAST_STEP) for edge in edges], np.int64)
    return steps, values.reshape(len(row_of), num_columns)


def summaries(
    reader: Reader, run: str, layer: str, role: str, from_step: int | None, to_step: int | None
) -> Iterator[tuple[int, int | None, bytes, str]]:
    """See Reader.summaries."""
    layer_id = reader.layer_id(run, layer, role)
    sql = """
        SELECT s.n, m.step, s.summary, coalesce(nullif(k.tier, ''), 'exact')
        FROM spectrum s JOIN measurement m ON m.layer_id = s.layer_id AND m.n = s.n JOIN kind k USING (kind_id)
        WHERE s.layer_id = ? AND s.n > ? AND (? IS NULL OR m.step >= ?) AND (? IS NULL OR m.step <= ?)
        ORDER BY s.n LIMIT ?
    """
    last_n = 0
    steps = (from_step, from_step, to_step, to_step)
    while rows := reader.rows(sql, layer_id, last_n, *steps, SPECTRA_SLICE):
        yield from rows
        last_n = rows[-1][0]
