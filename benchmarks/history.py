"""How fast the history takes measurements in and shows them again, and how much room they need.

One run of 300 layers is written through the writer that the daemon uses: exact rows with all that correcting noise adds
to them, an alert now and then, and each layer's detector state, 20 kB of bytes that do not compress, with every 64th of
its measurements; roll-ups are made meanwhile. Then a layer's history and a heatmap are read with the reader that the
command line uses, each as the median of several reads. `rival` is the same heatmap straight from the rows, without a
roll-up.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _report import Report

from rankd.config import HistoryConfig
from rankd.records import METRIC_NAMES, Alert, Measurement
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.reader import Reader
from rankd.store.schema import FILE_NAME
from rankd.store.writer import Writer

RUN = "lm-42"
NUM_LAYERS, NUM_BINS = 300, 100
JUDGE_EVERY, JUDGE_BYTES = 64, 20_000
ALERT_EVERY = 5_000
SUMMARY_EVERY, SUMMARY_BYTES = 64, 600
MAX_WAITING = 20_000
NUM_READS = 9
SLOW_SECONDS = 600.0
CORRECTED = ("effective_rank", "effective_rank_ratio", "nuclear_norm")


def layer_name(index: int) -> str:
    return f"transformer.h.{index // 4}.{('attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj')[index % 4]}.weight"


def numbers(chance: random.Random) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Metrics and further keys of an exact row of bfloat16: each a number of its own, in full precision. Half of the
    effective ranks are changed by noise so much that they have bars."""
    metrics: dict[str, float | None] = {name: chance.uniform(1, 768) for name in METRIC_NAMES}
    metrics["num_above_mp_edge"] = float(chance.randrange(200))
    floors = {f"{name}_noise_floor": chance.random() for name in ("wire", "source")}
    extra: dict[str, Any] = {"tier": "exact", **floors, "error_bound": chance.random(), "inside_noise": False}
    for name in CORRECTED:
        value = metrics[name] or 0.0
        raw = extra[f"{name}_raw"] = value * chance.uniform(1, 1.002)
        if raw > 1.001 * value:
            extra |= {f"{name}_low": value, f"{name}_high": raw}
    return metrics, extra


def entries(num: int) -> Iterator[Entry]:
    """What a run of 10 steps between checks brings."""
    chance = random.Random(0)
    names = [layer_name(index) for index in range(NUM_LAYERS)]
    judges = [chance.randbytes(JUDGE_BYTES) for _ in range(8)]
    num_alerts = 0
    for n in range(1, num + 1):
        check, index = divmod(n - 1, NUM_LAYERS)
        metrics, extra = numbers(chance)
        measurement = Measurement(
            RUN, names[index], 10 * check, (768, 3072), True, False, metrics,
            method="gram-float64", source_dtype="float32", wire_dtype="bfloat16",
            measure_seconds=chance.random() / 10, time=1.8e9 + n / 100,
            summary=judges[0][:SUMMARY_BYTES] if (check + index) % SUMMARY_EVERY == 0 else b"", extra=extra,
        )  # fmt: skip
        judge = judges[n % 8] if (check + index) % JUDGE_EVERY == JUDGE_EVERY - 1 else None
        alerts: tuple[tuple[int, Alert], ...] = ()
        if n % ALERT_EVERY == 0:
            num_alerts += 1
            alerts = ((num_alerts, alert(num_alerts, measurement)),)
        yield Entry(n, measurement, alerts, judge)


def alert(number: int, measurement: Measurement) -> Alert:
    return Alert(
        f"{number:016x}", RUN, measurement.layer, measurement.step, "warning", "firing", "effective_rank_drop",
        "effective_rank", 300.0, 330.0, f"{measurement.layer}: effective rank fell by 9 % within 15 % of the steps",
        "Look at what changed shortly before this step.", time=measurement.time or 0.0,
    )  # fmt: skip


def write(data: Path, num: int, report: Report) -> None:
    """Prints measurements a second: from the first of a block handed over to the last known to be on disk. Making them
    is not counted."""

    num_committed, taken_seconds = 0, 0.0

    def fail(error: StoreError | None) -> None:
        if error is not None:
            print(f"the history failed: {error}", file=sys.stderr)

    def committed(done: list[Entry | AlertEntry]) -> None:
        nonlocal num_committed
        num_committed += len(done)

    writer = Writer(data, HistoryConfig(max_pending=10 * MAX_WAITING), committed, fail)
    writer.start()
    source = entries(num)
    while block := list(islice(source, MAX_WAITING)):
        begin = time.perf_counter()
        for entry in block:
            writer.submit(entry)
        if not writer.flush(SLOW_SECONDS):
            raise RuntimeError(f"{writer.num_pending} entries were not written within {SLOW_SECONDS:g} s")
        taken_seconds += time.perf_counter() - begin
    if num_committed != num or not writer.close(SLOW_SECONDS):
        raise RuntimeError(f"{num_committed} of {num} measurements were written")
    rate = num / taken_seconds
    report.row("history write", rate, 20_000, "measurements/s", at_least=True, num_measurements=num, synchronous="full")


def sizes(data: Path, num: int, report: Report) -> None:
    """Bytes of the file; detector states and spectra stand by themselves."""
    connection = sqlite3.connect(data / FILE_NAME)
    try:
        pages = connection.execute("PRAGMA page_count").fetchone()[0] * 4096
        tables = {name: table_bytes(connection, name) for name in ("judge", "spectrum")}
        num_spectra = connection.execute("SELECT count(*) FROM spectrum").fetchone()[0]
        num_judges = connection.execute("SELECT count(*) FROM judge").fetchone()[0]
        num_bins = connection.execute("SELECT count(*) FROM rollup").fetchone()[0]
    finally:
        connection.close()
    each: dict[str, Any] = {f"{name}_bytes": size for name, size in tables.items()}
    counts: dict[str, Any] = {"num_spectra": num_spectra, "num_judges": num_judges, "num_bins": num_bins}
    own_bytes = pages - sum(tables.values())
    report.row("history size", own_bytes / num, 300, "bytes/measurement", file_bytes=pages, **each, **counts)


def table_bytes(connection: sqlite3.Connection, table: str) -> int:
    """Of its pages. Not every SQLite counts them (dbstat): then of what its blobs need, in whole pages."""
    try:
        return int(connection.execute("SELECT sum(pgsize) FROM dbstat WHERE name = ?", (table,)).fetchone()[0] or 0)
    except sqlite3.OperationalError:
        blob = {"judge": "state", "spectrum": "summary"}[table]
        query = f"SELECT coalesce(sum((length({blob}) + 4095) / 4096 * 4096), 0) FROM {table}"
        return int(connection.execute(query).fetchone()[0])


def median_ms(read: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(NUM_READS):
        begin = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


def reads(data: Path, num: int, report: Report) -> None:
    reader = Reader(data)
    try:
        steps, values = reader.history(RUN, layer_name(7), "effective_rank")
        if len(steps) != num // NUM_LAYERS or not np.isfinite(values).all():
            raise RuntimeError(f"{len(steps)} points of a layer were read; expected {num // NUM_LAYERS}")
        ours = median_ms(lambda: reader.history(RUN, layer_name(7), "effective_rank"))
        report.row("layer history", ours, 20, "ms", num_points=len(steps), median_of=NUM_READS)
        heatmap = reader.heatmap(RUN, "effective_rank", NUM_BINS)
        ours = median_ms(lambda: reader.heatmap(RUN, "effective_rank", NUM_BINS))
    finally:
        reader.close()
    rival, direct = heatmap_of_rows(data, heatmap.edges)
    # float sums in another order
    if heatmap.values.shape != direct.shape or not np.allclose(heatmap.values, direct, rtol=1e-9):
        raise RuntimeError("the heatmap of the roll-up is another than that of the rows")
    shape: dict[str, Any] = {"num_layers": heatmap.values.shape[0], "num_bins": heatmap.values.shape[1]}
    report.row("heatmap", ours, 50, "ms", **shape, num_measurements=num, rival=rival, median_of=NUM_READS)


def heatmap_of_rows(data: Path, edges: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[float, np.ndarray[Any, Any]]:
    """Milliseconds, and the same means [layers, bins] by adding up every row."""
    connection = sqlite3.connect(data / FILE_NAME)
    begin = time.perf_counter()
    try:
        rows = connection.execute("SELECT layer_id, step, effective_rank FROM measurement").fetchall()
    finally:
        connection.close()
    layer_ids, steps, values = np.array(rows).T
    _, layers = np.unique(layer_ids, return_inverse=True)
    bins = np.searchsorted(edges, steps, side="right") - 1
    place = layers * (len(edges) - 1) + bins
    size = NUM_LAYERS * (len(edges) - 1)
    means = np.bincount(place, values, size) / np.bincount(place, minlength=size)
    return 1000 * (time.perf_counter() - begin), means.reshape(NUM_LAYERS, -1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=int, default=3_000_000, metavar="N", help="a multiple of 300")
    parser.add_argument("--directory", type=Path, help="of the file; default: the system's for temporary files")
    arguments = parser.parse_args()
    num = arguments.measurements - arguments.measurements % NUM_LAYERS
    if num <= 0:
        parser.error(f"--measurements is {arguments.measurements}; expected at least {NUM_LAYERS}")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rankd-history-", dir=arguments.directory) as directory:
        data = Path(directory) / "data"
        write(data, num, report)
        sizes(data, num, report)
        reads(data, num, report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
