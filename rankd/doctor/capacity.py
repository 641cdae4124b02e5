"""Whether measuring keeps up with what is asked for, who waits, and what to add."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rankd.doctor.finding import Finding

Row = Mapping[str, Any]

BEHIND = 1.1
"""Of the time that there is: less is what rates and costs are known to."""

LAG_SECONDS = 10.0
"""Less is forgotten before anyone has read it."""

USABLE = 0.9
"""Of a slot that is added."""

MAX_TOLD = 3
"""Runs that are named."""

CORES_PER_SLOT = 2
"""Half of the cores are slots, and two at least (rankd.executors.threads)."""

HEAD = f"{'namespace, run':32} {'waiting':>8} {'MB':>8} {'lag s':>8} {'share':>6} {'asks':>6} {'gets':>6} {'missed':>8}"


def check_capacity(capacity: Row, namespace: str | None = None) -> Finding:
    """`capacity`: as `rankd.capacity` describes it; what is not in it, or is no number, counts as 0. `namespace`: the
    one that it is of, "" for the common one, where who asked is told of no other."""
    demand, granted = _number(capacity, "demand"), _number(capacity, "granted")
    lacking = sorted(_lacking(capacity), key=_lag_to_come, reverse=True)
    what = f"{demand:.2f} s of measuring asked for in each second, {_what_there_is(capacity, namespace)}"
    if demand <= BEHIND * granted or not lacking or not granted:
        keeps_up = "measuring keeps up" if namespace is None else f"{_in(namespace)}, runs get what they ask for"
        return Finding("capacity", True, f"{keeps_up}: {what}{_thinned(capacity)}", "", _table(capacity))
    lags = [f"of run {row.get('run')} will reach {_seconds(_lag_to_come(row))}" for row in lacking[:MAX_TOLD]]
    what = f"{what}; lag {', '.join(lags)}"
    where = "" if namespace is None else f"{_in(namespace)}, "
    advice, table = advise(capacity, namespace), _table(capacity)
    lag = max(_lag_to_come(lacking[0]), _number(capacity, "lag_seconds"))
    times = f"{demand / granted:.1f} ×"
    if lag > LAG_SECONDS:
        return Finding("capacity", False, f"{where}measuring is {times} behind: {what}", advice, table)
    within = f"the newest are measured, lag {_seconds(lag)} of {LAG_SECONDS:.0f} allowed"
    return Finding("capacity", True, f"{where}{times} more is pushed than measured; {within}: {what}", advice, table)


def advise(capacity: Row, namespace: str | None = None) -> str:
    """What to add, or to ask less of, so that nothing lags; "" where there is nothing to mend."""
    missing = _number(capacity, "demand") - _number(capacity, "granted")
    lacking = list(_lacking(capacity))
    if not lacking:
        return ""
    if namespace is not None:  # what others lack is not known, nor what there is to be had
        return f"{_less(capacity, lacking)}, or ask an administrator of the daemon for more slots"
    ways = [] if capacity.get("tier") == "auto" else ["let the plan choose (--tier auto)"]
    ways += _more(capacity, math.ceil(missing / USABLE))
    return ", or ".join([*ways, _less(capacity, lacking)])


def _less(capacity: Row, lacking: list[Row]) -> str:
    """What pushes are to be left out so that all runs are cured."""
    unnamed = [row for row in _others(capacity) if _lacks(row)]
    if len(lacking) <= MAX_TOLD and not unnamed:
        lacking = sorted(lacking, key=lambda row: _number(row, "granted") - _number(row, "demand"))
        runs = [f"run {row.get('run')} {_times(row)} times" for row in lacking]
        return f"push {' and '.join(filter(None, (', '.join(runs[:-1]), runs[-1])))} as rarely (every_steps=)"
    rows = [*lacking, *unnamed]
    together = {key: sum(_number(row, key) for row in rows) for key in ("demand", "granted")}
    who = "all runs" if unnamed else f"each of {len(lacking)} runs"
    return f"push {who} about {_times(together)} times as rarely (every_steps=)"


def _times(row: Row) -> int:
    return math.ceil(_number(row, "demand") / _number(row, "granted"))


def _more(capacity: Row, num_slots: int) -> list[str]:
    """What gives so many slots more."""
    if str(capacity.get("executor")).startswith("ray"):
        workers = _count(num_slots, "worker")
        return [f"add {workers} to the cluster and restart the daemon, which counts its slots when it starts"]
    elsewhere = "measure on other hosts (--executor ray)"
    if str(capacity.get("device")).startswith("cuda"):
        return [f"add {_count(num_slots, 'GPU')} (--device)", elsewhere]
    num_cores = CORES_PER_SLOT * (int(_number(capacity, "num_slots")) + num_slots) - int(_number(capacity, "num_cores"))
    return [f"add {_count(num_cores, 'core')}", "a GPU (--device)", elsewhere]


def _lacking(capacity: Row) -> Iterator[Row]:
    """Runs that ask for more than they get."""
    for namespace in _rows(capacity, "namespaces"):
        yield from filter(_lacks, _rows(namespace, "runs"))


def _others(capacity: Row) -> list[Row]:
    """Those that have no row of their own, summed up."""
    found = [row.get("others") for row in (capacity, *_rows(capacity, "namespaces"))]
    return [row for row in found if isinstance(row, Mapping)]


def _lacks(row: Row) -> bool:
    return _number(row, "demand") > BEHIND * _number(row, "granted") > 0


def _lag_to_come(row: Row) -> float:
    """Newest wins: so long it takes until each layer of the run has had its turn."""
    return _number(row, "once_seconds") / _number(row, "granted")


def _what_there_is(capacity: Row, namespace: str | None) -> str:
    seconds = _number(capacity, "window_seconds")
    slots = f"{_count(int(_number(capacity, 'num_slots')), 'slot')} on {capacity.get('device')}{_lost(capacity)}"
    used = f"{100 * _number(capacity, 'share'):.0f} % used"
    if namespace is None:
        return f"{slots}, {used} in the last {seconds:.0f} s"
    return f"{slots} that all namespaces share, {used} by these runs in the last {seconds:.0f} s"


def _lost(capacity: Row) -> str:
    """Why there are fewer slots than at the start."""
    if not (num_lost := int(_number(capacity, "num_slots_lost"))):
        return ""
    all_slots = int(_number(capacity, "num_slots")) + num_lost
    again = "; processes are started again" if capacity.get("executor") == "processes" else ""
    return f" (of {all_slots}: {num_lost} lost{again})"


def _in(namespace: str) -> str:
    return f"in your namespace ({namespace or 'the common one'})"


def _thinned(capacity: Row) -> str:
    wish, demand = _number(capacity, "wish"), _number(capacity, "demand")
    return f"; exactly, at every push, it would be {wish:.2f} s" if wish > BEHIND * demand else ""


def _table(capacity: Row) -> tuple[str, ...]:
    lines = []
    for namespace in _rows(capacity, "namespaces"):
        lines.append(_line(str(namespace.get("namespace") or "(common)"), namespace))
        lines += [_line(f"  {row.get('run')}", row) for row in _rows(namespace, "runs")]
        if isinstance(others := namespace.get("others"), Mapping):
            lines.append(_line(f"  {_number(others, 'num_runs'):g} others", others))
    if isinstance(others := capacity.get("others"), Mapping):
        lines.append(_line(f"{_number(others, 'num_namespaces'):g} other namespaces", others))
    return (HEAD, *lines) if lines else ()


def _line(name: str, row: Row) -> str:
    name = name if len(name) <= 32 else f"{name[:31]}…"
    missed = _number(row, "num_superseded") + _number(row, "num_dropped")
    return (
        f"{name:32} {_number(row, 'num_waiting'):8.0f} {_number(row, 'waiting_bytes') / 1e6:8.1f} "
        f"{_number(row, 'lag_seconds'):8.1f} {100 * _number(row, 'share'):4.0f} % {_number(row, 'demand'):6.2f} "
        f"{_number(row, 'granted'):6.2f} {missed:8.0f}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rows(row: Row, key: str) -> list[Row]:
    rows = row.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list | tuple) else []


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
