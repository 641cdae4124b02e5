"""What watching costs a real training step on a GPU: ours beside what people use today. About 5 minutes on an H100.

GPT-2-small, 16 × 1024 tokens a step, bfloat16 autocast, fused AdamW. Blocks of steps with a way of watching alternate
with blocks of plain training in the same process. One JSON line a way: `loss_share` is the median over the pairs of
what a step took longer by the wall clock, as a share of a plain step, with its 95 % interval; `blocked_*_ms` is what
the host waited each time. Rows that begin with `limit` are to be kept; the exit code says whether they were. `cadence`
rows say from how many steps on a way costs less than half a percent, for larger models too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import _report
import torch
from _daemon import Daemon
from _report import Report
from _tap_cadence import CADENCES, MODELS, Costs, Model, core_seconds, model_seconds, row
from _tap_inloop import METHODS, InLoop
from _tap_pairs import Pairs, measure, median_interval, percentile, run_block
from _tap_trackers import AsyncSave, Wandb, wandb_version
from _tap_training import GPT2_SMALL, TINY, Training
from _tap_ways import EVERY, Naive, Ours, OursByDefault, Pinned, Way

from rankd_client import Client

WARM_UP_STEPS = 30
ALONE_STEPS = 1200
"""After the pairs of ours: a hundred pushes and more have a 99th percentile."""

WHOLE: dict[str, Any] = {"max_overhead": None, "max_push_bytes": 1 << 30}
"""Every push takes the whole model."""

OURS = "ours"
LOSS_LIMIT, BLOCKED_LIMIT_SECONDS, NOT_DUE_LIMIT_SECONDS = 0.005, 1e-3, 20e-6
DAEMON_CORES = 2

Make = Callable[[Training, Daemon, Path], Way]


def ways() -> Iterator[tuple[str, Make, int, int]]:
    """What each is called, how it is made, and how many pairs of blocks of how many steps show what it costs."""
    yield OURS, lambda t, d, _: Ours(t, d, OURS, **WHOLE), 50, EVERY
    for name, options, attach in (
        ("ours without attach", {}, False),
        ("ours, int8", {"dtype": "int8"}, True),
        ("ours, fp32", {"dtype": "float32"}, True),
    ):
        yield name, partial(_ours, name=name, attach=attach, **options), 10, EVERY
    name = "ours at its defaults, called at every step"
    yield name, lambda t, d, _: OursByDefault(t, d, name), 8, 2 * EVERY
    yield Pinned.name, lambda t, d, _: Pinned(t), 8, EVERY
    yield Naive.name, lambda t, d, _: Naive(t), 5, EVERY
    yield AsyncSave.name, lambda t, d, directory: AsyncSave(t, directory), 5, EVERY
    yield Wandb.name, lambda t, d, directory: Wandb(t, directory), 3, EVERY
    for method, num_pairs in zip(METHODS, (1, 2, 2, 2, 6), strict=True):
        yield f"in-loop {method}", partial(_in_loop, method=method), num_pairs, EVERY


def _ours(training: Training, daemon: Daemon, _: Path, *, name: str, attach: bool, **options: Any) -> Way:
    return Ours(training, daemon, name, attach=attach, **WHOLE, **options)


def _in_loop(training: Training, _: Daemon, __: Path, *, method: str) -> Way:
    return InLoop(training, method)


def say(**found: Any) -> None:
    print(json.dumps({**found, "machine": _report.MACHINE}, ensure_ascii=False, allow_nan=False), flush=True)


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def told(pairs: Pairs, plain_peak_bytes: int) -> dict[str, Any]:
    """The row of a way."""
    step, way = pairs.plain_seconds, pairs.way
    share, low, high = (significant(value / step) for value in median_interval(pairs.loss_seconds))
    device_share = statistics.median(pairs.device_loss_seconds) / step
    blocked = pairs.blocked_seconds
    each_time = share * step * way.every
    more: dict[str, Any] = {}
    if way.default_every is not None:
        computed = significant(each_time / (way.default_every * step))
        more = {"default_every": way.default_every, "loss_share_at_default_computed": computed}
    return {
        "name": "way",
        "way": way.name,
        "how": way.how,
        "every": way.every,
        "loss_share": share,
        "loss_share_interval": [low, high],
        "device_loss_share": significant(device_share),
        "step_ms": significant(1e3 * step),
        "blocked_p50_ms": significant(1e3 * percentile(blocked, 0.5)),
        "blocked_p99_ms": significant(1e3 * percentile(blocked, 0.99)),
        "blocked_longest_ms": [significant(1e3 * seconds) for seconds in blocked[-4:]],
        "times": len(blocked),
        "pairs": len(pairs.plain),
        "bytes": way.num_bytes,
        "extra_device_bytes": max(0, pairs.peak_bytes - plain_peak_bytes),
        **more,
    }


class Bench:
    """One training, and what was found of each way."""

    def __init__(self, arguments: argparse.Namespace, daemon: Daemon, directory: Path) -> None:
        self.arguments, self.daemon, self.directory = arguments, daemon, directory
        self.report = Report()
        self.training = Training(TINY if arguments.tiny else GPT2_SMALL, arguments.device)
        self.rows: dict[str, dict[str, Any]] = {}
        self.pairs: dict[str, Pairs] = {}
        self.plain_peak_bytes = 0

    def run(self) -> None:
        run_block(self.training, WARM_UP_STEPS)
        self.plain_peak_bytes = run_block(self.training, EVERY).peak_bytes
        for name, make, num_pairs, steps in ways():
            if self.arguments.only and not any(word in name for word in self.arguments.only):
                continue
            try:
                self._measure(name, make, max(1, round(num_pairs * self.arguments.scale)), steps)
            except Exception as error:
                if name.startswith(OURS):
                    raise
                say(name="way", way=name, failed=f"{type(error).__name__}: {error}"[:500])
        self._limits()

    def _measure(self, name: str, make: Make, num_pairs: int, steps: int) -> None:
        way = make(self.training, self.daemon, self.directory)
        way.name = name
        try:
            pairs = measure(self.training, way, num_pairs, steps, lambda: _warm_up(self.training, way, steps))
            way.settle()
            if name == OURS:
                pairs.alone.append(run_block(self.training, round(ALONE_STEPS * self.arguments.scale), way))
            self.pairs[name], self.rows[name] = pairs, told(pairs, self.plain_peak_bytes)
            say(**self.rows[name])
        finally:
            way.close()
            gc.collect()  # what is closed is gone, and counts for none of those to come
            if self.training.device.type == "cuda":
                torch.cuda.empty_cache()

    def _limits(self) -> None:
        """Ours against the limits, and against each of the others."""
        ours = self.rows.get(OURS)
        if ours is None:
            return
        high = ours["loss_share_interval"][1]
        more = {"interval": ours["loss_share_interval"], "proved": high <= LOSS_LIMIT, "pairs": ours["pairs"]}
        self.report.row("limit_step_time_loss", ours["loss_share"], LOSS_LIMIT, "share", **more)
        blocked = ours["blocked_p99_ms"] / 1e3
        self.report.row("limit_host_blocked_p99", blocked, BLOCKED_LIMIT_SECONDS, "seconds", times=ours["times"])
        for name, other in self.rows.items():
            if name.startswith(OURS) or other["loss_share"] <= 0:
                continue
            ratio = max(0.0, ours["loss_share"]) / other["loss_share"]
            self.report.row("ours_over_rival_step_time_loss", significant(ratio), 1.0, "ratio", rival_is=name)

    def not_due(self, num_calls: int = 10_000) -> None:
        """A push that is not due, of weights on this device."""
        with Client("not-due", self.daemon.url, every_steps=1 << 40, echo=False, strict=True, **WHOLE) as client:
            client.push(self.training.model, 0)
            calls = []
            for step in range(1, num_calls):
                started = time.perf_counter()
                client.push(self.training.model, step)
                calls.append(time.perf_counter() - started)
        seconds = significant(statistics.median(calls))
        self.report.row("limit_push_not_due", seconds, NOT_DUE_LIMIT_SECONDS, "seconds", calls=num_calls)

    def identical(self) -> None:
        """Losses with and without, in a process that computes deterministically."""
        command = [sys.executable, str(Path(__file__).with_name("_tap_identical.py")), "--url", self.daemon.url]
        command += ["--device", self.arguments.device] + ["--tiny"] * self.arguments.tiny
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        wrong = found["different_losses"] + (not found["weights_equal"]) + (not found["random_states_equal"])
        self.report.row("limit_different_losses", float(wrong), 0.0, "losses", **found)

    def cadences(self) -> None:
        """Shipping against measuring in the loop, for models of three sizes."""
        ours = self.pairs.get(OURS)
        if ours is None:
            return
        step, num_bytes = ours.plain_seconds, ours.way.num_bytes
        middle, _, high = median_interval(ours.loss_seconds)
        step_per_parameter = step / self.training.num_parameters
        costs = Costs(self.training.device)
        for model in MODELS[: 1 if self.arguments.tiny else None]:
            step_seconds = step_per_parameter * model.num_elements
            wire_bytes = 2 * model.num_elements
            shipped, at_most = (max(0.0, loss) * EVERY * wire_bytes / num_bytes for loss in (middle, high))
            computed = model is not MODELS[0]
            more = {"wire_bytes": wire_bytes, "daemon_core_seconds_computed": significant(core_seconds(model), 3)}
            say(**row(model, "shipping", shipped, step_seconds, computed=computed, **more))
            say(**row(model, "shipping, upper end of the interval", at_most, step_seconds, computed=computed))
            for method in METHODS:
                cost, computed = self._cost(costs, method, model)
                each = {f"equals_shipping_every_{n}_when_every": _equal(n, cost, at_most) for n in CADENCES}
                say(**row(model, f"in-loop {method}", cost, step_seconds, computed=computed, **each))

    def _cost(self, costs: Costs, method: str, model: Model) -> tuple[float, bool]:
        """Seconds of one look in the loop, and whether they are computed: of this very model they were measured."""
        if model is MODELS[0] and not self.arguments.tiny and (pairs := self.pairs.get(f"in-loop {method}")):
            return statistics.median(pairs.loss_seconds) * EVERY, False
        return model_seconds(costs, method, model)


def _equal(every: int, cost: float, shipped: float) -> int | None:
    """Steps between two looks in the loop that cost as much together as shipping every so many; None: any number."""
    return round(every * cost / shipped) if shipped > 0 else None


def _warm_up(training: Training, way: Way, steps: int) -> None:
    """What is done once: memory, connections, solvers. A minute of svdvals would be too long."""
    if way.name == "in-loop svdvals":
        torch.linalg.svdvals(training.matrices()[0])
        return
    run_block(training, steps, way)
    way.settle()


@contextmanager
def daemon_of(arguments: argparse.Namespace, directory: Path) -> Iterator[Daemon]:
    """`rankd serve` on some cores of this host; it measures on them, as one on another host would."""
    daemon = Daemon(directory)
    daemon.start()
    cores = sorted(os.sched_getaffinity(0))
    if 0 < arguments.daemon_cores < len(cores):
        os.sched_setaffinity(daemon.pid, cores[-arguments.daemon_cores :])
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does everything run?")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of pairs")
    parser.add_argument("--only", nargs="*", default=[], help="ways with one of these words in their names")
    parser.add_argument("--daemon-cores", type=int, default=DAEMON_CORES, help="0: all")
    arguments = parser.parse_args()
    is_cuda = arguments.device.startswith("cuda")
    device_name = torch.cuda.get_device_name(arguments.device) if is_cuda else "cpu"
    _report.MACHINE.update(device=device_name, torch=torch.__version__, wandb=wandb_version())
    with tempfile.TemporaryDirectory(prefix="tap-") as name, daemon_of(arguments, Path(name)) as daemon:
        bench = Bench(arguments, daemon, Path(name))
        bench.run()
        if not arguments.only:
            bench.not_due()
            bench.cadences()
            del bench.training
            bench.identical()
    return bench.report.exit_code


if __name__ == "__main__":
    sys.exit(main())
