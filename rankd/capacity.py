"""How the daemon's time of measuring is used, asked for and shared: by namespace, and run within it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rankd.mailbox import Mailbox, Queue
from rankd.namespaces import namespace_of
from rankd.plan import Demand, Planner, allot
from rankd.plan.window import WINDOW_SECONDS

MAX_NAMESPACES, MAX_RUNS = 8, 8
"""Rows of their own, in each namespace; the others are summed up. 72 rows at most, of 0.3 kB and a name of up to 1 kB,
since anybody may ask often."""

NO_QUEUE, NO_DEMAND = Queue(0, 0, 0.0, 0.0, 0, 0, 0), Demand(0.0, 0.0, 0.0)

Row = dict[str, Any]
SUMMED = (
    *("num_waiting", "waiting_bytes", "share", "demand", "wish", "granted", "once_seconds"),
    *("num_superseded", "num_dropped", "num_measured"),
)


class Capacity:
    """Of what a mailbox holds and hands out, and a planner expects."""

    def __init__(self, mailbox: Mailbox, planner: Planner, device: Callable[[], str], executor: str) -> None:
        self._mailbox = mailbox
        self._planner = planner
        self._device = device
        self._executor = executor
        self._num_at_start, self._devices_at_start = planner.num_slots, device().split(",")

    def describe(self, covers: Callable[[str], bool] = lambda run: True) -> dict[str, Any]:
        """JSON of bounded size, of the runs that `covers` lets somebody see; those come first that lack most.

        Of each run, of each namespace and of all: `num_waiting` snapshots of `waiting_bytes`; `lag_seconds`, since when
        the one waits that waits longest; `share` of the slots' time in the last `window_seconds`; `demand`, seconds of
        a slot asked for in each second, as the plan is, and `wish`, with every layer measured exactly at every push;
        `granted`, what fairness leaves of the demand; `once_seconds`, that measuring each layer once takes; and how
        many snapshots were superseded by newer ones, dropped for want of room and measured since the run is known.

        `num_slots` and `device` are of this moment, those of this host while a Ray cluster is lost; `num_slots_lost`
        says how many fewer slots there are than at the start, `device_lost` which devices of then are not there.
        """
        rows = [row for row in self._rows() if covers(row["run"])]
        namespaces: dict[str, list[Row]] = {}
        for row in rows:
            namespaces.setdefault(namespace_of(row["run"]), []).append(row)
        device = self._device()
        lost = [name for name in self._devices_at_start if name not in device.split(",")]
        of_namespaces = [{"namespace": name, **_summary(runs, MAX_RUNS, "runs")} for name, runs in namespaces.items()]
        return {
            "executor": self._executor,
            "device": device,
            "device_lost": ",".join(lost),
            "num_cores": len(os.sched_getaffinity(0)),
            "num_slots": self._planner.num_slots,
            "num_slots_lost": max(0, self._num_at_start - self._planner.num_slots),
            "tier": self._planner.config.tier,
            "window_seconds": WINDOW_SECONDS,
            "num_runs": len(rows),
            **_summary(of_namespaces, MAX_NAMESPACES, "namespaces"),
        }

    def _rows(self) -> Iterable[Row]:
        num_slots, demands, queues = self._planner.num_slots, self._planner.demands, self._mailbox.queues()
        granted = allot({run: demand.per_second for run, demand in demands.items()}, num_slots)
        for run in demands.keys() | queues.keys():
            queue, demand = queues.get(run, NO_QUEUE), demands.get(run, NO_DEMAND)
            yield {
                "run": run,
                "num_waiting": queue.num_waiting,
                "waiting_bytes": queue.num_bytes,
                "lag_seconds": queue.lag_seconds,
                "share": queue.seconds / num_slots,
                "demand": demand.per_second,
                "wish": demand.wish,
                "granted": min(demand.per_second, granted.get(run, math.inf)),
                "once_seconds": demand.once,
                "num_superseded": queue.num_superseded,
                "num_dropped": queue.num_dropped,
                "num_measured": queue.num_measured,
            }


def _summary(rows: list[Row], max_rows: int, name: str) -> Row:
    """The sum of `rows`, and under `name` those that lack most; the rest summed up as `others`."""
    rows = sorted(rows, key=lambda row: (row["granted"] - row["demand"], -row["lag_seconds"], -row["demand"]))
    told, others = rows[:max_rows], rows[max_rows:]
    found = {**_sum(rows), name: [_rounded(row) for row in told]}
    if name == "runs":
        found["num_runs"] = len(rows)
    if others:
        found["others"] = {f"num_{name}": len(others), **_sum(others)}
    return found


def _sum(rows: Iterable[Mapping[str, Any]]) -> Row:
    rows = list(rows)
    total: Row = {key: sum(row[key] for row in rows) for key in SUMMED}
    return _rounded({**total, "lag_seconds": max((row["lag_seconds"] for row in rows), default=0.0)})


def _rounded(row: Row) -> Row:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
