"""Numbers that a trainer computed, checked before they go: what a daemon would refuse, or take for what it has, is
skipped with a reason, and so is what no matrix can have."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

import msgpack

from rankd_client.naming import label_of
from rankd_client.reports import Reports
from rankd_client.text import escape
from rankd_client.watch.unfit import unfit_name
from rankd_client.wire import MAX_REPORT_BYTES, WireError
from rankd_client.wire.fields import ROLES, check_json, unpack_map
from rankd_client.wire.limits import BYTES_PER_ELEMENT, MAX_ELEMENTS

NORMS = ("spectral_norm", "frobenius_norm", "nuclear_norm")
RATIOS = (
    "stable_rank",
    "effective_rank",
    "effective_rank_energy",
    "participation_ratio",
    "effective_rank_ratio",
    "stable_rank_ratio",
    "num_above_mp_edge",
)
METRICS = (*NORMS, *RATIOS)
"""Those that a daemon knows, as numbers from 0 or null; other keys may be whatever JSON has."""

MAX_DTYPE_BYTES = 32


def report(
    reports: Reports, measurements: Any, step: int, role: Any, refused: Collection[str]
) -> tuple[int, dict[str, str]]:
    """Queue a mapping of layer -> {metric: number}. Returns how many were, and why the others were not."""
    if role not in ROLES:
        return 0, {"*": f"role {escape(role, 40)}: expected {', '.join(ROLES)}"}
    if not isinstance(measurements, Mapping):
        return 0, {"*": f"{type(measurements).__name__}: expected a mapping of layer -> {{metric: number}}"}
    num_queued, skipped = 0, {}
    for layer, values in measurements.items():
        label = label_of(layer, role) if isinstance(layer, str) else escape(layer)
        body = _body(layer, values)
        if isinstance(body, str):
            skipped[label] = body
        elif label in refused:
            skipped[label] = "refused"
        elif reports.put(layer, role, step, body):
            num_queued += 1
        else:
            skipped[label] = f"already reported at step {step}: give all its metrics in one call"
    return num_queued, skipped


def _body(layer: Any, values: Any) -> dict[str, Any] | str:
    """As it is sent; or why it is not. A number that is not finite is null, and says that the matrix is not finite if
    it is a norm, or there is no norm: the ratios of an all-zero matrix are not finite either."""
    if not isinstance(layer, str):
        return "name is not a string"
    if (reason := unfit_name(layer)) is not None:
        return reason
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        return f"{type(values).__name__}: expected a mapping of metric -> number or None"
    body = {key: _plain(value) for key, value in values.items()}
    wrong = next((f"{key}={escape(value, 40)}" for key, value in body.items() if not _is_right(key, value)), None)
    if wrong is not None:
        return f"{wrong}: expected a number from 0, or None" if wrong.partition("=")[0] in METRICS else wrong
    if not any(key in body for key in METRICS) and body.get("finite", True):
        return f"none of {', '.join(METRICS)}"
    known = [body[key] for key in NORMS if body.get(key) is not None]
    known = known or [body[key] for key in RATIOS if body.get(key) is not None]
    if not all(map(math.isfinite, known)):
        body.setdefault("finite", False)
    body = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in body.items()
    }
    try:
        check_json(body)
        _check_integers(body)
        packed = msgpack.packb(body)
    except (WireError, ValueError, TypeError, OverflowError) as error:
        return f"cannot be sent: {escape(str(error), 100)}"
    if len(packed) > MAX_REPORT_BYTES:
        return f"{len(packed)} bytes; at most {MAX_REPORT_BYTES}"
    try:
        unpack_map(packed, MAX_REPORT_BYTES, "payload_too_large")  # a daemon reads it so
    except WireError:
        most = MAX_REPORT_BYTES // BYTES_PER_ELEMENT
        return f"a daemon could not read it: lists and maps have at most {most} elements, and each key once"
    return body


def _check_integers(value: Any) -> None:
    """A daemon's history holds those of 64 bits with a sign."""
    if isinstance(value, dict | list | tuple):
        for child in value.values() if isinstance(value, dict) else value:
            _check_integers(child)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise OverflowError("an integer beyond 64 bits")


def _plain(value: Any) -> Any:
    """Numbers of numpy, and of torch where they are on the CPU, as Python's. A GPU's would have to be waited for."""
    if type(value) in (int, float, bool, str) or value is None:
        return value
    if getattr(value, "ndim", None) == 0 and str(getattr(value, "device", "cpu")) == "cpu":
        value = value.item()
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _is_right(key: str, value: Any) -> bool:
    is_integer = type(value) is int
    if key in METRICS:
        if type(value) is float:
            return value >= 0 or not math.isfinite(value)
        return value is None or (is_integer and 0 <= value < 1 << 63)
    if key in ("rows", "cols"):
        return is_integer and 0 <= value < MAX_ELEMENTS
    if key == "finite":
        return type(value) is bool
    if key == "source_dtype":
        return type(value) is str and len(value.encode(errors="replace")) <= MAX_DTYPE_BYTES
    return key != "shape"
