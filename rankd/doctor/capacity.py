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
"""Runs that are named with the lag that they will come to."""

HEAD = f"{'namespace, run':32} {'waiting':>8} {'MB':>8} {'lag s':>8} {'share':>6} {'asks':>6} {'gets':>6} {'missed':>8}"


def check_capacity(capacity: Row) -> Finding:
    """`capacity`: as `rankd.capacity` describes it; what is not in it, or is no number, counts as 0."""
    demand, granted = _number(capacity, "demand"), _number(capacity, "granted")
    lacking = sorted(_lacking(capacity), key=_lag_to_come, reverse=True)
    text = f"{demand:.2f} s of measuring asked for in each second, {_what_there_is(capacity)}"
    if demand <= BEHIND * granted or not lacking:
        return Finding("capacity", True, f"measuring keeps up: {text}{_thinned(capacity)}", "", _table(capacity))
    lags = [f"of run {row.get('run')} will reach {_seconds(_lag_to_come(row))}" for row in lacking[:MAX_TOLD]]
    text = f"measuring is {demand / granted:.1f} × behind: {text}; lag {', '.join(lags)}"
    is_late = max(_lag_to_come(lacking[0]), _number(capacity, "lag_seconds")) > LAG_SECONDS
    return Finding("capacity", not is_late, text, advise(capacity), _table(capacity))


def advise(capacity: Row) -> str:
    """What to add, or to ask less of, so that nothing lags; "" where there is nothing to mend."""
    missing = _number(capacity, "demand") - _number(capacity, "granted")
    lacking = max(_lacking(capacity), key=lambda row: _number(row, "demand") - _number(row, "granted"), default=None)
    if lacking is None:
        return ""
    ways = [] if capacity.get("tier") == "auto" else ["let the plan choose (--tier auto)"]
    ways += _more(capacity, math.ceil(missing / USABLE))
    times = math.ceil(_number(lacking, "demand") / _number(lacking, "granted"))
    ways.append(f"push run {lacking.get('run')} {times} times as rarely (every_steps=)")
    return ", or ".join(ways)


def _more(capacity: Row, num_slots: int) -> list[str]:
    """What gives so many slots more."""
    if str(capacity.get("executor")).startswith("ray"):
        return [f"add {_count(num_slots, 'worker')} to the cluster"]
    elsewhere = "measure on other hosts (--executor ray)"
    if str(capacity.get("device")).startswith("cuda"):
        return [f"add {_count(num_slots, 'GPU')} (--device)", elsewhere]
    # Half of the cores are slots, and two at least (rankd.executors.threads).
    num_cores = 2 * (int(_number(capacity, "num_slots")) + num_slots) - int(_number(capacity, "num_cores"))
    return [f"add {_count(num_cores, 'core')}", "a GPU (--device)", elsewhere]


def _lacking(capacity: Row) -> Iterator[Row]:
    """Runs that ask for more than they get."""
    for namespace in _rows(capacity, "namespaces"):
        for row in _rows(namespace, "runs"):
            if _number(row, "demand") > BEHIND * _number(row, "granted") > 0:
                yield row


def _lag_to_come(row: Row) -> float:
    """Newest wins: so long it takes until each layer of the run has had its turn."""
    return _number(row, "once_seconds") / _number(row, "granted")


def _what_there_is(capacity: Row) -> str:
    seconds = _number(capacity, "window_seconds")
    slots = _count(int(_number(capacity, "num_slots")), "slot")
    used = f"{100 * _number(capacity, 'share'):.0f} % used in the last {seconds:.0f} s"
    return f"{slots} on {capacity.get('device')}, {used}"


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
    return float(value) if isinstance(value, int | float) else 0.0
