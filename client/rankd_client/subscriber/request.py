"""The arguments of subscribe(), checked before any socket exists."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankd_client.endpoints import (
    EndpointError,
    check_address,
    check_owner,
    default_url,
    discovery_path,
    endpoints_of,
    is_discovery,
)
from rankd_client.keys import Key, find_key
from rankd_client.stream.filters import Wanted
from rankd_client.stream.severity import SEVERITIES, check_severity
from rankd_client.wire import full_run_name, heartbeat_topic, prefix_of, split_run, topic_of

STREAMS = ("alert", "measurement")


class SubscriptionError(PermissionError):
    """The daemon refuses to tell this subscriber anything: it would wait for alerts that never come."""


@dataclass(frozen=True, slots=True)
class Request:
    """Two addresses, what is wanted, after how many seconds without an item to end, with which key, and the file that
    says where to go on."""

    alerts: str
    query: str
    wanted: Wanted
    timeout: float | None
    key: Key | None = None
    since_last: str | os.PathLike[str] | None = None

    def prefixes(self, everybody: bool = False) -> list[bytes]:
        """What to subscribe to: the run's topics, else those of the key's namespace; without a key, and for a key that
        covers `everybody`, those of every namespace."""
        if (run := self.wanted.run) is not None:
            return [*(topic_of(kind, run) for kind in self.wanted.kinds), heartbeat_topic(split_run(run)[0])]
        if self.key is None or everybody:
            return [kind.encode() for kind in (*self.wanted.kinds, "heartbeat")]
        return [prefix_of(kind, self.key.namespace) for kind in (*self.wanted.kinds, "heartbeat")]

    @property
    def description(self) -> dict[str, Any]:
        """What is wanted, as JSON."""
        wanted = self.wanted
        about = {"run": wanted.run, "layers": wanted.layers and list(wanted.layers), "streams": list(wanted.kinds)}
        return about if wanted.severity is None else {**about, "severity": wanted.severity}

    def refusal(self, code: str) -> str:
        who = "no key" if self.key is None else f"key {self.key.name!r} of namespace {self.key.namespace!r}"
        what = "alerts" if self.wanted.run is None else f"run {self.wanted.run!r}"
        return f"{self.query}: {code}: {who}, {what}; expected a key with the right to subscribe to it"


def check(
    endpoint: str | None,
    run: str | None,
    layers: Sequence[str] | None,
    streams: Sequence[str],
    timeout: float | None,
    alerts: str | None,
    query: str | None,
    key: str | os.PathLike[str] | None = None,
    since_last: str | os.PathLike[str] | None = None,
    severity: str | None = None,
) -> Request:
    """Raises ValueError naming the argument, its value and what was expected; EndpointError for an address."""
    for name, value in (("endpoint", endpoint), ("alerts", alerts), ("query", query)):
        if value is not None and not isinstance(value, str):
            raise EndpointError(f"{name}={value!r}; expected ipc://… or tcp://HOST:PORT")
    if alerts is None or query is None:
        url = default_url() if endpoint is None else endpoint
        if is_discovery(url):  # not read yet: it may be missing, and the next daemon may be on another node
            alerts, query = alerts or url, query or url
        else:
            derived = endpoints_of(url)
            alerts = derived.alerts if alerts is None else alerts
            query = derived.query if query is None else query
    for address in (alerts, query):
        if is_discovery(address):
            discovery_path(address)
            continue
        check_owner(check_address(address))
        if address.startswith("tcp://") and int(address.rpartition(":")[2]) == 0:
            raise EndpointError(f"{address!r}: nobody listens on port 0; expected the daemon's port")
    found = find_key(key, alerts) or find_key(key, query)
    if run is not None and found is not None and isinstance(run, str):
        run = found.full_run(run)
    if run is not None:
        full_run_name("run", run)  # its WireError is a ValueError
    if isinstance(layers, str) or not all(isinstance(glob, str) for glob in layers or ()):
        raise ValueError(f"layers={layers!r}; expected globs in a tuple or list, such as ('*.mlp.*',)")
    if isinstance(streams, str) or not streams or any(stream not in STREAMS for stream in streams):
        raise ValueError(f"streams={streams!r}; expected a tuple of {' or '.join(map(repr, STREAMS))}, or of both")
    if timeout is not None and (type(timeout) not in (int, float) or not 0 <= timeout < math.inf):
        raise ValueError(f"timeout={timeout!r}; expected seconds, 0 or more, or None")
    if since_last is not None and not isinstance(since_last, str | os.PathLike):
        raise ValueError(f"since_last={since_last!r}; expected the path of a file, or None")
    if check_severity(severity) == SEVERITIES[0]:
        severity = None  # nothing is hidden
    wanted = Wanted(run, None if layers is None else tuple(layers), tuple(streams), severity)
    return Request(alerts, query, wanted, timeout, found, since_last)
