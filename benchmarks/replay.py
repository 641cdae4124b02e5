"""How fast recorded rows go through the rules, and how fast all layers come back after a restart.

    python benchmarks/replay.py [--layers 1000] [--checks 200] [--points 10000] [--traces DIR]

* replay_traces, replay_synthetic: rows a second of `rankd replay`, reading and parsing included, over the recordings in
  benchmarks/traces and over 1,000 layers × 200 checks of rows as the daemon writes them. In CPU time of its one thread:
  wall time on a shared machine would count others' work. The rival reads the same lines with json.loads, no more.
* restart: seconds until the rules of 1,000 layers with 10,000 measurements each stand where they stood, from a history
  on disk: the last state and, for the i-th layer, the i % 64 measurements after it. The rival judges all measurements
  again, from memory, extrapolated from a few layers. The layers take turns in a few recorded courses, since making
  1,000 different ones would take as long as the rival.

One JSON line a row; exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from _report import Report

from rankd.config import HistoryConfig
from rankd.judge import DEFAULT_CONFIG, STATE_EVERY, RunJudges, recall_judge
from rankd.judge.state import unpack_state
from rankd.records import METRIC_NAMES, Measurement
from rankd.replay import read_file
from rankd.replay import replay as judge_rows
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.writer import Writer

TRACES = Path(__file__).parent / "traces"
MIN_ROWS_PER_SECOND = 10_000
MAX_RESTART_SECONDS = 5.0
NUM_COURSES = 4
FLUSH_SECONDS = 120.0


def measurements(layer: str, num_checks: int, seed: int) -> Iterator[Measurement]:
    """A layer that trains: its rank falls slowly, with noise, and once by a fifth."""
    source = random.Random(seed)
    collapse = source.randrange(num_checks)
    for check in range(num_checks):
        level = 400.0 * (1 + check) ** -0.05 * (0.8 if check >= collapse else 1.0) * (1 + source.gauss(0, 0.003))
        metrics = dict.fromkeys(METRIC_NAMES, level) | {"spectral_norm": 1 + 40 / level, "stable_rank": level / 10}
        yield Measurement(
            *("synthetic", layer, 10 * (check + 1), (768, 3072), True, False, metrics, "weight", "gram-eigvalsh"),
            *("float32", "bfloat16", 0.02, 1.7e9 + check),
        )


def seconds_of(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    started = clock()
    result = work()
    return clock() - started, result


def report_rows(report: Report, name: str, files: list[Path]) -> None:
    """Rows a second of reading and judging `files`, beside reading them alone."""

    def rows() -> Iterator[Measurement]:
        for file in files:
            for measurement in read_file(file):
                counted.append(1)
                yield measurement

    counted: list[int] = []
    ours, num_alerts = seconds_of(lambda: sum(1 for _ in judge_rows(rows())), time.process_time)
    lines = (line for file in files for line in lines_of(file))
    rival, _ = seconds_of(lambda: sum(bool(json.loads(line)) for line in lines), time.process_time)
    report.row(
        name,
        round(len(counted) / ours),
        MIN_ROWS_PER_SECOND,
        "rows a CPU-second",
        at_least=True,
        rival=round(len(counted) / rival),
        rival_is="json.loads of the same lines, nothing judged",
        num_rows=len(counted),
        num_alerts=num_alerts,
    )


def lines_of(file: Path) -> Iterator[bytes]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        yield from lines


def write_synthetic(file: Path, num_layers: int, num_checks: int) -> None:
    """All layers of a check, then the next check, as a daemon records them."""
    layers = [measurements(f"layers.{index}.weight", num_checks, index) for index in range(num_layers)]
    with file.open("w") as rows:
        for check in zip(*layers, strict=True):
            rows.writelines(json.dumps(measurement.to_json()) + "\n" for measurement in check)


def report_restart(report: Report, directory: Path, num_layers: int, num_points: int) -> None:
    courses = [list(measurements("course", num_points + STATE_EVERY + 1, seed)) for seed in range(NUM_COURSES)]
    rival, states = seconds_of(lambda: [state_after(course[:num_points]) for course in courses])
    write_history(directory, courses, states, num_layers, num_points)
    firsts = [
        replace(courses[index % NUM_COURSES][num_points + index % STATE_EVERY], layer=f"layers.{index}")
        for index in range(num_layers)
    ]
    with Reader(directory) as reader:

        def recall(run: str, layer: str, role: str, *, whole: bool = False) -> tuple[bytes | None, list[Measurement]]:
            return reader.judge(run, layer, role)

        def bring_back() -> None:
            for first in firsts:
                judges.take(recall_judge(first.run, first.layer, first.role, DEFAULT_CONFIG, recall))
                judges.update(first)

        judges = RunJudges()
        ours, _ = seconds_of(bring_back)
    check_restart(judges, courses, num_points)
    report.row(
        "restart",
        round(ours, 3),
        MAX_RESTART_SECONDS,
        "seconds",
        rival=round(rival * num_layers / NUM_COURSES, 1),
        rival_is=f"judging all measurements again, from memory; extrapolated from {NUM_COURSES} layers",
        num_layers=num_layers,
        points_per_layer=num_points,
        state_bytes=len(states[0]),
    )


def state_after(course: list[Measurement]) -> bytes:
    judges = RunJudges()
    for measurement in course:
        judges.update(measurement)
    return judges.state("synthetic", "course", "weight")


def write_history(
    directory: Path, courses: list[list[Measurement]], states: list[bytes], num_layers: int, num_points: int
) -> None:
    """Of each layer the measurement with the state, and those after it."""
    writer = Writer(directory, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    n = 0
    for index in range(num_layers):
        course = courses[index % NUM_COURSES]
        for point in range(num_points - 1, num_points + index % STATE_EVERY):
            n += 1
            state = states[index % NUM_COURSES] if point == num_points - 1 else None
            writer.submit(Entry(n, replace(course[point], layer=f"layers.{index}"), (), state))
        if index % 100 == 0 and not writer.flush(FLUSH_SECONDS):
            raise RuntimeError(f"the history was not written in {FLUSH_SECONDS} s")
    if not writer.close(FLUSH_SECONDS):
        raise RuntimeError(f"the history was not written in {FLUSH_SECONDS} s")


def check_restart(judges: RunJudges, courses: list[list[Measurement]], num_points: int) -> None:
    """That the rules' memory is, bit for bit, that of a process which never stopped."""
    for index, course in enumerate(courses):
        expected = state_after(course[: num_points + index % STATE_EVERY + 1])
        if unpack_state(judges.state("synthetic", f"layers.{index}", "weight"))[1] != unpack_state(expected)[1]:
            raise RuntimeError(f"layer {index} is not as it was before the restart")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--checks", type=int, default=200, help="of each layer, for the rows a second")
    parser.add_argument("--points", type=int, default=10_000, help="of each layer, for the restart")
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="DIR")
    arguments = parser.parse_args()
    report = Report()
    report_rows(report, "replay_traces", sorted(arguments.traces.glob("*.jsonl.gz")))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "synthetic.jsonl"
        write_synthetic(file, arguments.layers, arguments.checks)
        report_rows(report, "replay_synthetic", [file])
        report_restart(report, Path(directory) / "history", arguments.layers, arguments.points)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
