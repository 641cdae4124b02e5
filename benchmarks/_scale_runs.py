"""The measurements of benchmarks/scale.py: each starts a daemon of its own, and ends it."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _scale_load import Heard, Load, ScaleDaemon, Setting, Shape, Trainers, Used, since

from rankd_client.wire import DEFAULT_CHUNK_BYTES

SETTLE_SECONDS = 1.0
CAPACITY_SECONDS = 4.0
KEPT_UP, MAX_TRIED = 0.9, 12


@contextlib.contextmanager
def daemon_of(setting: Setting) -> Iterator[ScaleDaemon]:
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        daemon = ScaleDaemon(Path(directory), setting)
        try:
            daemon.start()
            daemon.wait_ready()
            yield daemon
            daemon.check()
        finally:
            daemon.close()


@contextlib.contextmanager
def trainers_of(daemon: ScaleDaemon, setting: Setting, **more: int) -> Iterator[Trainers]:
    trainers = Trainers(daemon, setting, **more)
    try:
        yield trainers
    finally:
        trainers.close()


def costs(setting: Setting, counts: Mapping[Shape, int]) -> dict[Shape, float]:
    """CPU seconds of measuring for one matrix of each shape, so many of which are pushed at once and waited for. Twice,
    and the less of both: a cache that others use makes it more."""
    most = max(2 * count * rows * cols for (rows, cols), count in counts.items())
    found: dict[Shape, float] = {}
    with daemon_of(setting) as daemon, trainers_of(daemon, setting, megabytes=64 + (most >> 20)) as trainers:
        # The largest first: where smaller ones came before, a client may find no room for it.
        largest_first = sorted(counts.items(), key=lambda item: -item[1] * item[0][0] * item[0][1])
        for shape, count in largest_first * 2:
            load, before = Load(count, shape, wait=True), daemon.used()
            trainers.begin(load)
            ((_, num_queued),) = trainers.end(load)
            if num_queued != count:
                raise RuntimeError(f"the client took {num_queued} of {count} matrices of {shape}")
            seconds = since(before, daemon.used()).measuring / count
            found[shape] = min(seconds, found.get(shape, seconds))
    return found


def capacity(
    daemon: ScaleDaemon, trainers: Trainers, layers: int, shape: Shape, least: float
) -> tuple[float, list[tuple[float, float]]]:
    """Matrices a second that are sustained: from `least` on, half as many more are pushed each time, until a tenth of
    them or more is not measured. And each rate pushed, with that measured then."""
    tried: list[tuple[float, float]] = []
    while not tried or (tried[-1][1] >= KEPT_UP * tried[-1][0] and len(tried) < MAX_TRIED):
        pushed = least * 1.5 ** len(tried)
        load = Load(layers, shape, 2 * layers / pushed, seconds=CAPACITY_SECONDS + 2 * SETTLE_SECONDS)
        trainers.begin(load)
        time.sleep(SETTLE_SECONDS)
        before, began = daemon.ask("capacity")["num_measured"], time.monotonic()
        time.sleep(CAPACITY_SECONDS)
        measured, took = daemon.ask("capacity")["num_measured"] - before, time.monotonic() - began
        tried.append((pushed, measured / took))
        trainers.end(load)
        drain(daemon)
    return max(measured for _, measured in tried), tried


def drain(daemon: ScaleDaemon) -> None:
    while daemon.ask("capacity")["num_waiting"]:
        time.sleep(0.1)


@dataclass(frozen=True)
class Lag:
    """At one load: rates in matrices a second, ages in seconds from a push until its measurement was heard of."""

    load: float
    interval: float
    pushed: float
    measured: float
    ages: Sequence[float]
    rss_bytes: int
    used: Used

    @property
    def row(self) -> dict[str, Any]:
        ordered = sorted(self.ages) or [math.nan]
        ages = {
            "age_median": statistics.median(ordered),
            "age_p95": ordered[int(0.95 * (len(ordered) - 1))],
            "age_max": ordered[-1],
        }
        told = {"pushed_per_second": self.pushed, "measured_per_second": self.measured, **ages, **self.used._asdict()}
        return {
            "load": self.load,
            "interval_seconds": round(self.interval, 3),
            **{name: float(f"{value:.3g}") for name, value in told.items()},
            "rss_bytes": self.rss_bytes,
        }


def lags(
    setting: Setting, layers: int, shape: Shape, guess: float, loads: Sequence[float], seconds: float
) -> tuple[float, list[tuple[float, float]], list[Lag]]:
    """What is sustained, and how it was found (`guess`: seconds of a core for a matrix); then, at each of `loads` times
    that, what two jobs push that come with all their layers at every interval, as a model does."""
    found = []
    with daemon_of(setting) as daemon, trainers_of(daemon, setting, runs=2) as trainers:
        sustained, tried = capacity(daemon, trainers, layers, shape, 0.2 * setting.cores / guess)
        heard = Heard(daemon.url)
        time.sleep(SETTLE_SECONDS)
        for load in loads:
            pushed = Load(layers, shape, 2 * layers / (load * sustained), seconds)
            found.append(_at(daemon, trainers, heard, load, pushed))
        heard.close()
    return sustained, tried, found


def _at(daemon: ScaleDaemon, trainers: Trainers, heard: Heard, times: float, load: Load) -> Lag:
    heard.items.clear()
    told, before, began = daemon.ask("capacity")["num_measured"], daemon.used(), time.monotonic()
    trainers.begin(load)
    ended = trainers.end(load)
    measured, took = daemon.ask("capacity")["num_measured"] - told, time.monotonic() - began
    used, rss = since(before, daemon.used()), daemon.rss_bytes()
    drain(daemon)
    time.sleep(SETTLE_SECONDS)
    pushed = {(run, step): at for run, (steps, _) in zip(trainers.runs, ended, strict=True) for step, at in steps}
    ages = [at - pushed[run, step] for run, step, at in list(heard.items) if (run, step) in pushed]
    num_pushed = sum(num_queued for _, num_queued in ended)
    return Lag(times, load.interval, num_pushed / took, measured / took, ages, rss, used)


@dataclass(frozen=True)
class Intake:
    """What came in a while, by names of INTAKE, and CPU seconds that all but measuring took."""

    name: str
    came: Mapping[str, float]
    used: Used
    rss_bytes: int
    cores: float
    """CPU seconds of the whole daemon in each second."""


def intake(name: str, setting: Setting, world: int, load: Load | None, seconds: float) -> Intake:
    """Of a job of so many processes that push `load`, or nothing."""
    with daemon_of(setting) as daemon, trainers_of(daemon, setting, world=world) as trainers:
        time.sleep(2 * SETTLE_SECONDS)  # hellos, first connections
        if load is not None:
            trainers.begin(load._replace(seconds=seconds + 2 * SETTLE_SECONDS))
            time.sleep(SETTLE_SECONDS)
        told, before, began = daemon.ask("healthz"), daemon.used(), time.monotonic()
        time.sleep(seconds)
        after, used, took = daemon.ask("healthz"), since(before, daemon.used()), time.monotonic() - began
        rss = daemon.rss_bytes()
        if load is not None:
            trainers.end(load._replace(seconds=seconds + 2 * SETTLE_SECONDS))
    came = {key: after.get(key, 0) - told.get(key, 0) for key in ("num_received_bytes", "num_measurements")}
    gb = came["num_received_bytes"] / 1e9
    of_message = DEFAULT_CHUNK_BYTES
    if load is not None:
        of_message = min(of_message, 2 * load.shape[0] // world * load.shape[1])
    return Intake(
        name,
        {
            "gb_with_keys" if setting.keyring is not None else "gb": gb,
            "messages": came["num_received_bytes"] / of_message,
            "matrices": came["num_measurements"],
            "process_seconds": world * took,
            "seconds": took,
        },
        used,
        rss,
        (used.measuring + used.intake) / took,
    )
