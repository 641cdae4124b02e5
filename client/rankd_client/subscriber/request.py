"""The arguments of subscribe(), checked before any socket exists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankd_client.endpoints import EndpointError, check_address, check_owner, default_url, endpoints_of
from rankd_client.stream.filters import Wanted
from rankd_client.wire import MAX_RUN_NAME_BYTES, fields

STREAMS = ("alert", "measurement")


@dataclass(frozen=True, slots=True)
class Request:
    """Two addresses, what is wanted, and after how many seconds without an item to end."""

    alerts: str
    query: str
    wanted: Wanted
    timeout: float | None


def check(
    endpoint: str | None,
    run: str | None,
    layers: Sequence[str] | None,
    streams: Sequence[str],
    timeout: float | None,
    alerts: str | None,
    query: str | None,
) -> Request:
    """Raises ValueError naming the argument, its value and what was expected; EndpointError for an address."""
    for name, value in (("endpoint", endpoint), ("alerts", alerts), ("query", query)):
        if value is not None and not isinstance(value, str):
            raise EndpointError(f"{name}={value!r}; expected ipc://… or tcp://HOST:PORT")
    if alerts is None or query is None:
        derived = endpoints_of(default_url() if endpoint is None else endpoint)
        alerts = derived.alerts if alerts is None else alerts
        query = derived.query if query is None else query
    for address in (alerts, query):
        check_owner(check_address(address))
        if address.startswith("tcp://") and int(address.rpartition(":")[2]) == 0:
            raise EndpointError(f"{address!r}: nobody listens on port 0; expected the daemon's port")
    if run is not None:
        fields.name(MAX_RUN_NAME_BYTES)("run", run)  # its WireError is a ValueError
    if isinstance(layers, str) or not all(isinstance(glob, str) for glob in layers or ()):
        raise ValueError(f"layers={layers!r}; expected globs in a tuple or list, such as ('*.mlp.*',)")
    if isinstance(streams, str) or not streams or any(stream not in STREAMS for stream in streams):
        raise ValueError(f"streams={streams!r}; expected a tuple of {' or '.join(map(repr, STREAMS))}, or of both")
    if timeout is not None and (type(timeout) not in (int, float) or not 0 <= timeout < math.inf):
        raise ValueError(f"timeout={timeout!r}; expected seconds, 0 or more, or None")
    return Request(alerts, query, Wanted(run, None if layers is None else tuple(layers), tuple(streams)), timeout)
