"""A client's settings: argument before environment before default, each checked once, at construction."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankd_client.endpoints import default_url, discovery_path, endpoints_of, is_discovery, state_directory
from rankd_client.keys import Key, find_key
from rankd_client.runname import default_run
from rankd_client.wire import MAX_RUN_NAME_BYTES

DTYPES = ("bfloat16", "float32", "float16", "float64", "int8", "float8_e4m3fn", "float8_e5m2")
"""What a snapshot may be sent as: the table's dtypes that are not reserved."""

MODES = ("online", "offline", "disabled")
SOURCES = ("param", "master")
Patterns = str | Iterable[str] | None


@dataclass(frozen=True, slots=True)
class Config:
    """Checked settings of a Client; see there for what each means."""

    run: str
    address: str
    """ZeroMQ address of the daemon's push socket, or a discovery file's URL, in which it is looked up each time."""
    mode: str
    every_steps: int
    min_interval_seconds: float
    max_overhead: float | None
    max_push_bytes: int
    max_memory_bytes: int
    dtype: str
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    priority: tuple[str, ...]
    strict: bool
    echo: bool
    spool: str = ""
    """Directory of the spool, an absolute path, and the bytes of all that may be in it; of mode offline alone."""
    spool_bytes: int = 0
    adapters: tuple[Any, ...] = ()
    source: str = "param"
    key: Key | None = None
    """Who we are to a daemon on TCP; None on ipc, where a daemon has no keys, and where nothing is sent."""


def read_config(
    run: str | None,
    endpoint: str | None,
    every_steps: int | None,
    min_interval_seconds: float,
    max_overhead: float | None,
    max_push_bytes: int,
    max_memory_bytes: int | None,
    dtype: str,
    include: Patterns,
    exclude: Patterns,
    priority: Patterns,
    strict: bool,
    echo: bool | None,
    key: str | os.PathLike[str] | None = None,
    adapters: Iterable[Any] = (),
    source: str = "param",
) -> Config:
    """The settings that these arguments and the environment give. Raises ValueError naming key, value, expectation."""
    mode = os.environ.get("RANKD_MODE") or "online"
    if mode not in MODES:
        raise _wrong("RANKD_MODE", mode, f"one of {', '.join(MODES)}")
    push_bytes = _integer("max_push_bytes", max_push_bytes)
    memory_bytes = 2 * push_bytes if max_memory_bytes is None else _integer("max_memory_bytes", max_memory_bytes)
    if max_overhead is not None and not (_is_number(max_overhead) and 0 < max_overhead <= 1):
        raise _wrong("max_overhead", max_overhead, "a share of training time above 0 and up to 1, or None for no limit")
    if dtype not in DTYPES:
        raise _wrong("dtype", dtype, f"one of {', '.join(DTYPES)}")
    if source not in SOURCES:
        raise _wrong("source", source, f"one of {', '.join(SOURCES)}")
    address = _address(endpoint)
    return Config(
        run=_run(run),
        address=address,
        mode=mode,
        every_steps=_every_steps(every_steps),
        min_interval_seconds=_number("min_interval_seconds", min_interval_seconds),
        max_overhead=max_overhead,
        max_push_bytes=push_bytes,
        max_memory_bytes=memory_bytes,
        dtype=dtype,
        include=None if include is None else _patterns("include", include),
        exclude=_patterns("exclude", exclude),
        priority=_patterns("priority", priority),
        strict=bool(strict),
        echo=_echo(echo),
        spool=str(spool_directory()) if mode == "offline" else "",
        spool_bytes=_spool_bytes() if mode == "offline" else 0,
        adapters=_adapters(adapters),
        source=source,
        key=find_key(key, address) if mode == "online" else None,
    )


SPOOL_BYTES = 10 << 30
"""Budget of a spool: a hundredth of the smallest disks of compute nodes, and of a model of 124 M in bfloat16 40 whole
snapshots; thinned out, each of its layers has one at every 32nd of the step for as long as that."""


def spool_directory() -> Path:
    """Where mode offline writes: RANKD_SPOOL, else `rankd/spool` in the user's state directory. Raises ValueError."""
    given = os.environ.get("RANKD_SPOOL")
    if given is None or given == "":
        return state_directory() / "rankd" / "spool"
    if "\0" in given or given.startswith(("ipc:", "tcp:", "file:")):
        raise _wrong("RANKD_SPOOL", given, "the path of a directory")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # ~nobody
        raise _wrong("RANKD_SPOOL", given, "the path of a directory") from None


def _spool_bytes() -> int:
    text = os.environ.get("RANKD_SPOOL_BYTES") or str(SPOOL_BYTES)
    if not text.isascii() or not text.isdigit() or not int(text[:19]) > 0 or len(text) > 18:
        raise _wrong("RANKD_SPOOL_BYTES", text, "a number of bytes, an integer of at least 1")
    return int(text)


def _run(run: str | None) -> str:
    key, value = ("run", run) if run is not None else ("RANKD_RUN", os.environ.get("RANKD_RUN") or default_run())
    try:
        ok = isinstance(value, str) and 0 < len(value.encode()) <= MAX_RUN_NAME_BYTES and "\0" not in value
    except UnicodeEncodeError:
        ok = False
    if not ok:
        raise _wrong(key, value, f"a name of 1 to {MAX_RUN_NAME_BYTES} UTF-8 bytes without NUL")
    return value


def _address(endpoint: str | None) -> str:
    if endpoint is not None and not isinstance(endpoint, str):
        raise _wrong("endpoint", endpoint, "ipc://DIR or tcp://HOST:PORT")
    url = endpoint or default_url()
    if is_discovery(url):
        discovery_path(url)
        return url  # not read yet: it may be missing, and the next daemon may be on another node
    address = endpoints_of(url).push
    if address.startswith("tcp://") and address.endswith(":0"):
        raise _wrong("endpoint", address, "the port of a daemon; 0 names none")
    return address


def _every_steps(every_steps: int | None) -> int:
    if every_steps is not None:
        return _integer("every_steps", every_steps)
    text = os.environ.get("RANKD_EVERY_STEPS") or "1"
    if not text.isascii() or not text.isdigit() or not int(text[:19]) > 0 or len(text) > 18:
        raise _wrong("RANKD_EVERY_STEPS", text, "an integer of at least 1")
    return int(text)


def _echo(echo: bool | None) -> bool:
    if echo is not None:
        return bool(echo)
    text = os.environ.get("RANKD_ECHO") or "1"
    if text not in ("0", "1"):
        raise _wrong("RANKD_ECHO", text, "0 or 1")
    return text == "1"


def _integer(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(key, value, "an integer of at least 1")
    return value


def _number(key: str, value: Any) -> float:
    if not (_is_number(value) and math.isfinite(value) and value >= 0):
        raise _wrong(key, value, "a finite number of at least 0")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _patterns(key: str, value: Patterns) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    patterns = tuple(value) if isinstance(value, Iterable) else () if value is None else (value,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise _wrong(key, value, "a glob pattern of layer names, or several")
    return patterns


def _adapters(value: Any) -> tuple[Any, ...]:
    adapters = tuple(value) if isinstance(value, Iterable) else (value,)
    for adapter in adapters:
        if isinstance(adapter, type) or not callable(getattr(adapter, "place", None)):
            raise _wrong("adapters", value, "objects with a method place(name, tensor), as rankd_client.Adapter has it")
    return adapters


def _wrong(key: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{key}={value!r}: expected {expected}")
