"""The host: open files, clock, GPU."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

from rankd.config import ConfigError
from rankd.doctor.finding import Finding, ok, problem

MIN_OPEN_FILES = 1024
"""Each connection needs one, each socket of ZeroMQ a few."""

SANE_YEARS = range(2024, 2100)


def check_host(device: str) -> Iterator[Finding]:
    yield check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield check_clock(time.time())
    yield check_device(device)


def check_open_files(soft: int, hard: int) -> Finding:
    text = f"at most {soft} open files (hard limit {hard})"
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return ok("open_files", text)
    return problem(
        "open_files", text, f"raise it to {MIN_OPEN_FILES} or more: `ulimit -n`, or LimitNOFILE= in the unit"
    )


def check_clock(now: float) -> Finding:
    """`now`: seconds since the Unix epoch."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if time.gmtime(now).tm_year in SANE_YEARS:
        return ok("clock", f"it is {moment}")
    return problem("clock", f"the clock says {moment}", "set it: times in the history come from it")


def check_device(device: str) -> Finding:
    """Where a daemon with this setting would measure."""
    from rankd.executors import choose_devices

    try:
        chosen = ", ".join(map(str, choose_devices(device)))
    except (ConfigError, RuntimeError) as error:
        return problem("device", str(error), "give --device auto, or look at the GPU's driver (nvidia-smi)")
    return ok("device", f"a daemon with device={device} measures on {chosen}")
