"""What a daemon can take, and what models of 7 B, 70 B and 400 B parameters with 1 to 512 processes need.

    python benchmarks/scale.py [--long] [--device cuda] [--store]     measures, fits, predicts, measures again; computes
    python benchmarks/scale.py --needs | --markdown                   computes from benchmarks/scale-fit.json

A real daemon and real clients in processes of their own. `lag`: two jobs push all their layers at every interval, at so
many times the rate that was sustained just before, and go on whether it keeps up or not (open loop); ages are from a
push until its measurement was heard of. Seconds that are fitted are CPU seconds of the daemon's threads, since other
programs that run meanwhile hardly count in them; rates and ages are of the clock, and do feel them. Growth is tried on
shapes that were not in the fit; taking in is fitted to loads of one kind each (idle, large, small, in shards, with
keys), and tried on one of a mixed kind.

What is computed is marked so: beyond the largest matrix measured, and for GPUs, whose times were measured earlier on an
H100 (constants in _scale_needs.py, with their sources). One JSON line a row; exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _report import Report
from _scale_fit import FILE, Fit, Growth, LagRow, Shape, fit_growth, fit_intake, load, store
from _scale_load import Load, Setting
from _scale_needs import CADENCES, MODELS, PROCESSES, TIERS, measuring, taking_in
from _scale_runs import Intake, Lag, costs, intake, lags
from _scale_table import markdown
from remote import make_keys
from scaling import device_name

PARTS = ("growth", "lag", "intake")

ERROR, ESTIMATE_ERROR = 0.25, 0.6
"""Of a predicted load. Estimates take from 16 to 64 steps, as a spectrum needs them: no power of n tells how many."""

LAYERS = 16
"""Of each of two jobs, where lag is measured."""

LAG_SIDE = {"norms": 512, "estimate": 512, "exact": 384}
TINY = (32, 32)
ELEMENTS = {"norms": 1 << 24, "estimate": 1 << 21, "exact": 1 << 22}
"""Of all matrices of one shape together; one at least, 32 at most."""


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much is measured. By tier, growth is fitted to `fitted` and tried on `tried`. Estimates have more than 1,024
    rows: up to there they are kept to ±1 %, whatever the tolerance, and mostly go to the exact tier."""

    fitted: Mapping[str, Sequence[Shape]]
    tried: Mapping[str, Sequence[Shape]]
    lag_tiers: Sequence[str]
    lag_cores: Sequence[int]
    loads: Sequence[float]
    lag_seconds: float
    processes: Sequence[int]
    intake_seconds: float


SHORT = Extent(
    fitted={
        "norms": ((1024, 1024), (1536, 1536), (2048, 2048), (1024, 4096)),
        "estimate": ((1088, 1088), (1536, 1536), (1088, 2944)),
        "exact": ((256, 256), (512, 512), (1024, 1024), (256, 1024), (512, 1376)),
    },
    tried={"norms": ((1280, 3440),), "estimate": ((1280, 2560),), "exact": ((384, 1536), (768, 768))},
    lag_tiers=("exact",),
    lag_cores=(2,),
    loads=(0.8, 2.0),
    lag_seconds=4.0,
    processes=(1, 8),
    intake_seconds=3.0,
)
LARGE: Sequence[Shape] = ((1536, 1536), (2048, 2048), (4096, 4096), (1536, 6144), (2048, 5504))
LONG = Extent(
    fitted={
        "norms": LARGE,
        "estimate": ((1280, 1280), (2048, 2048), (3072, 3072), (1280, 5120), (2048, 5504)),
        "exact": LARGE,
    },
    tried={
        "norms": ((1280, 3440), (3072, 3072)),
        "estimate": ((1536, 4096), (2560, 2560)),
        "exact": ((1280, 3440), (3072, 3072)),
    },
    lag_tiers=TIERS,
    lag_cores=(1, 2),
    loads=(0.5, 0.8, 0.95, 1.2, 2.0),
    lag_seconds=8.0,
    processes=(1, 8, 64),
    intake_seconds=8.0,
)


def bench_growth(report: Report, extent: Extent, device: str) -> tuple[dict[str, Growth], dict[str, float]]:
    """The fit of each tier, and the worst error of those tried."""
    fits, errors = {}, {}
    for tier in TIERS:
        # An estimate whose bar is too wide goes to the exact tier, and costs both: what is fitted is one that holds.
        setting = Setting(tier, min(2, os.cpu_count() or 1), device, tolerance=1.0)
        fitted, tried = extent.fitted[tier], extent.tried[tier]
        shapes = (TINY, *fitted, *tried)
        seen = costs(setting, {(m, n): max(1, min(32, ELEMENTS[tier] // (m * n))) for m, n in shapes})
        fits[tier] = fit_growth({shape: seen[shape] for shape in fitted}, seen[TINY])
        more = {f"{m}x{n}": float(f"{seconds:.3g}") for (m, n), seconds in seen.items()}
        report.row(f"growth_{tier}", round(fits[tier].power, 3), 3.3, "power of n", cpu_seconds=more)
        pairs = {shape: (fits[tier].seconds(shape), seen[shape]) for shape in tried}
        errors[tier] = max(judge(report, f"predicted_{tier}", *pair, shape=shape) for shape, pair in pairs.items())
    return fits, errors


def judge(report: Report, name: str, predicted: float, seen: float, **more: Any) -> float:
    error = abs(predicted / seen - 1)
    values = {"predicted": float(f"{predicted:.3g}"), "measured": float(f"{seen:.3g}")}
    limit = ESTIMATE_ERROR if name == "predicted_estimate" else ERROR
    report.row(name, round(error, 3), limit, "of what was measured", **values, **more)
    return error


def bench_lag(report: Report, extent: Extent, device: str, guess: dict[str, float]) -> list[LagRow]:
    told = []
    for tier in extent.lag_tiers:
        for cores in extent.lag_cores:
            shape = (LAG_SIDE[tier], LAG_SIDE[tier])
            sustained, tried, found = lags(
                Setting(tier, cores, device), LAYERS, shape, guess[tier], extent.loads, extent.lag_seconds
            )
            about = {"tier": tier, "cores": cores, "device": device, "side": shape[0], "layers": 2 * LAYERS}
            rates = [[round(rate, 1) for rate in pair] for pair in tried]
            report.row(
                "sustained", round(sustained, 1), 0.1, "matrices/s", at_least=True, **about, pushed_measured=rates
            )
            oldest = {str(lag.load): judge_lag(report, lag, sustained, about) for lag in found}
            rss = max(lag.rss_bytes for lag in found)
            told.append(LagRow(tier, cores, shape[0], sustained, oldest, rss))
    return told


def judge_lag(report: Report, lag: Lag, sustained: float, about: dict[str, Any]) -> float:
    """Below what is sustained the oldest is measured within two intervals: its own, and one that others disturb.
    Beyond, newest wins: all layers have their turn, within so many times what that takes."""
    a_turn = max(lag.interval, 2 * LAYERS / sustained)
    limit = 2.0 if lag.load <= 0.8 else 4.0
    oldest = round(max(lag.ages, default=math.inf) / a_turn, 2)
    report.row("lag", oldest, limit, "turns of all layers", **about, **lag.row)
    return oldest


def loads_of(extent: Extent, keyring: Path, key: Path) -> list[Intake]:
    plain, keyed = Setting("norms", 2, tcp=True), Setting("norms", 2, keyring=keyring, key=key)
    seconds, most = extent.intake_seconds, max(extent.processes)
    found = [intake(f"idle_{world}", plain, world, None, seconds) for world in extent.processes]
    found.append(intake("large", plain, 1, Load(4, (2048, 2048), 0.4), seconds))
    found.append(intake("large_with_keys", keyed, 1, Load(4, (2048, 2048), 0.4), seconds))
    found.append(intake("small", plain, 1, Load(64, (32, 32), 0.25), seconds))
    found.append(intake("shards", plain, 8, Load(48, (64, 64), 0.4), seconds))
    if most > 8:
        # At its start a job of so many is told to push every 16th time.
        found.append(intake(f"shards_{most}", plain, most, Load(16, (64, 64), 0.1), seconds))
    return found


def bench_intake(report: Report, extent: Extent) -> tuple[dict[str, float], float, int, float]:
    """Seconds by INTAKE, the share of the busiest thread, bytes at rest, and the error of the mixed load."""
    with tempfile.TemporaryDirectory() as directory:
        keyring, key = make_keys(Path(directory))
        found = loads_of(extent, keyring, key)
        tried = intake(
            "mixed", Setting("norms", 2, keyring=keyring, key=key), 4, Load(12, (512, 512), 0.4), extent.intake_seconds
        )
    fitted = fit_intake([load.came for load in found], [load.used.intake for load in found])
    for taken in (*found, tried):
        came = {name: float(f"{number:.3g}") for name, number in taken.came.items()}
        share = taken.used.intake / taken.came["seconds"]
        more = {**came, "rss_bytes": taken.rss_bytes, "busiest": round(taken.used.busiest / taken.came["seconds"], 4)}
        report.row(f"intake_{taken.name}", round(share, 4), 1.5, "cores", **more, daemon_cores=round(taken.cores, 3))
    predicted = sum(fitted[name] * number for name, number in tried.came.items())
    error = judge(report, "predicted_intake", predicted, tried.used.intake)
    print(json.dumps({"name": "intake_seconds", **{name: float(f"{value:.3g}") for name, value in fitted.items()}}))
    busiest = max(taken.used.busiest / taken.used.intake for taken in found if not taken.name.startswith("idle"))
    return fitted, busiest, min(taken.rss_bytes for taken in found), error


def bench(report: Report, extent: Extent, device: str, parts: Collection[str], known: Fit | None) -> Fit:
    """Those of PARTS that are wanted, the rest from `known`."""
    found: dict[str, Any] = {} if known is None else {key: getattr(known, key) for key in Fit.__dataclass_fields__}
    found["machine"] = f"{os.cpu_count()} cores of {device_name('cpu').removesuffix(', 1 thread')}"
    errors = dict(found.get("errors", {}))
    if "growth" in parts:
        found["measuring"], told = bench_growth(report, extent, device)
        errors |= told
        found["largest"] = {tier: max(min(shape) for shape in extent.fitted[tier]) for tier in TIERS}
    if "lag" in parts:
        guess = {tier: found["measuring"][tier].seconds((LAG_SIDE[tier], LAG_SIDE[tier])) for tier in TIERS}
        found["lags"] = bench_lag(report, extent, device, guess)
    if "intake" in parts:
        found["intake"], found["busiest_share"], found["rss_bytes"], errors["intake"] = bench_intake(report, extent)
    return Fit(**{**found, "errors": errors})


def tell_needs(fit: Fit) -> None:
    """Computed, every row of it."""
    for model in MODELS:
        about = {"computed": True, "model": model.name}
        for every in CADENCES:
            for tier in TIERS:
                _tell("needs_measuring", about, measuring(fit, model, tier, every))
            for processes in PROCESSES:
                _tell("needs_taking_in", about, taking_in(fit, model, processes, every))


def _tell(name: str, about: dict[str, Any], need: Any) -> None:
    fields = {item.name: getattr(need, item.name) for item in dataclasses.fields(need) if item.name != "model"}
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}
    print(json.dumps({"name": name, **about, **rounded}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="the figures of docs/operations.md; a quarter of an hour")
    parser.add_argument("--device", default="cpu", help="where lag is measured, and growth")
    parser.add_argument("--store", action="store_true", help="write the fit to benchmarks/scale-fit.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the rest is of the stored fit")
    parser.add_argument("--needs", action="store_true", help="measure nothing: what models need, from the stored fit")
    parser.add_argument("--markdown", action="store_true", help="measure nothing: the tables of docs/operations.md")
    arguments = parser.parse_args()
    if arguments.markdown or arguments.needs:
        fit = load()
        print(markdown(fit)) if arguments.markdown else tell_needs(fit)
        return 0
    torch.set_num_threads(1)
    report = Report()
    known = None if set(arguments.only) == set(PARTS) else load()
    fit = bench(report, LONG if arguments.long else SHORT, arguments.device, arguments.only, known)
    tell_needs(fit)
    if arguments.store:
        store(fit, FILE)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
