"""Every default and limit of the daemon, each with its reason; checked on construction.

Nothing here reads argv, the environment or files: that is the CLI's, which hands over what it found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rankd.judge import DetectConfig
from rankd_client.endpoints import EndpointError, check_address, default_url, endpoints_of, is_loopback
from rankd_client.wire import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

DEFAULT_HTTP = "127.0.0.1:7780"
EXECUTOR_NAMES = ("threads", "inline")


class ConfigError(ValueError):
    """A setting that cannot be used: names the key, the value and what was expected."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may make the daemon hold, and how long things may take."""

    credit_bytes: int = 32 << 20
    """Payload one connection may have under way: four chunks keep a 2 GB/s link busy at this loop's latency."""

    total_credit_bytes: int = 1 << 30
    """Credit of all connections together: what may lie in receive queues at worst. Bounds the number of connections."""

    chunk_bytes: int = DEFAULT_CHUNK_BYTES

    max_layer_bytes: int = 1 << 30
    """One matrix: a 128k × 4k embedding in bfloat16."""

    max_assembly_bytes: int = 2 << 30
    """Unfinished layers of all peers together; at least two of the largest."""

    max_open_layers: int = 16_384
    """Unfinished layers by number, because a shard may be tiny."""

    assembly_timeout_seconds: float = 60.0
    """A shard that has not come by then will not come: its process is gone or at another step."""

    max_mailbox_bytes: int = 1 << 30
    """Snapshots that wait for measuring. Newest wins before this is reached unless many large layers are watched."""

    max_runs: int = 1024
    max_layers_per_run: int = 16_384
    """Memory per layer is a few kB of detector state; these bound it to what one host has."""

    run_idle_seconds: float = 3600.0
    """A run that has been silent this long gives up its place when room is wanted for another."""

    max_recent_alerts: int = 10_000
    max_recent_measurements: int = 16_384
    """Events kept for subscribers that missed some; about 1 kB each."""

    heartbeat_seconds: float = 1.0
    peer_timeout_seconds: float = 30.0
    """A connection silent for this long is forgotten and its credit given back; its client will say hello again."""

    drain_seconds: float = 15.0
    """Clean shutdown has 20 s; the rest is for saying goodbye."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            wanted = float if item.name.endswith("_seconds") else int
            if isinstance(value, bool) or not isinstance(value, int | wanted) or not value > 0:
                raise ConfigError(f"limits.{item.name}={value!r}: expected a positive {wanted.__name__}")
        if not MIN_CHUNK_BYTES <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise ConfigError(
                f"limits.chunk_bytes={self.chunk_bytes}: expected {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes"
            )
        for smaller, larger in (
            ("chunk_bytes", "credit_bytes"),
            ("credit_bytes", "total_credit_bytes"),
            ("max_layer_bytes", "max_assembly_bytes"),
            ("max_layer_bytes", "max_mailbox_bytes"),
        ):
            if getattr(self, smaller) > getattr(self, larger):
                raise ConfigError(
                    f"limits.{smaller}={getattr(self, smaller)}: expected at most limits.{larger}"
                    f"={getattr(self, larger)}"
                )


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What `rankd serve` runs with. Addresses are ZeroMQ's; `http` is HOST:PORT or "off"."""

    push: str
    alerts: str
    query: str
    http: str = DEFAULT_HTTP
    http_any_port: bool = True
    """Whether another port may be taken where `http` is in use: for the default, which nobody asked for by name."""
    data: Path | None = None
    device: str = "auto"
    executor: str = "threads"
    insecure: bool = False
    limits: Limits = field(default_factory=Limits)
    detect: DetectConfig = field(default_factory=DetectConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda:\d+", self.device):
            raise ConfigError(f"device={self.device!r}: expected auto, cpu or cuda:N")
        if self.executor not in EXECUTOR_NAMES:
            raise ConfigError(f"executor={self.executor!r}: expected one of {', '.join(EXECUTOR_NAMES)}")
        for key in ("push", "alerts", "query"):
            _check(key, getattr(self, key))
        if self.http != "off":
            try:
                check_address(f"tcp://{self.http}")
            except EndpointError:
                raise ConfigError(f"http={self.http!r}: expected HOST:PORT or off") from None
        addresses = {"push": self.push, "alerts": self.alerts, "query": self.query}
        if self.http != "off":
            addresses["http"] = f"tcp://{self.http}"
        exposed = [f"{key}={address}" for key, address in addresses.items() if not is_loopback(address)]
        if exposed and not self.insecure:
            raise ConfigError(
                f"{', '.join(exposed)} would listen beyond loopback without keys: anyone who can reach it could push "
                "and listen; expected keys (not in this version yet), a loopback or ipc address, or --insecure"
            )


def serve_config(settings: dict[str, Any]) -> ServeConfig:
    """A ServeConfig of `settings` as the CLI merged them (file < environment < flags): url, push, alerts, query, http,
    data, device, executor, insecure, and the tables limits and detect. Raises ConfigError for anything unknown."""
    settings = dict(settings)
    _check_keys("", settings, {"url", "limits", "detect"} | {item.name for item in fields(ServeConfig)})
    try:
        endpoints = endpoints_of(settings.pop("url", None) or default_url())
    except EndpointError as error:
        raise ConfigError(str(error)) from None
    for key in ("push", "alerts", "query"):
        settings[key] = settings.get(key) or getattr(endpoints, key)
    for name, kind in (("limits", Limits), ("detect", DetectConfig)):
        table = settings.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name}={table!r}: expected a table")
        _check_keys(f"{name}.", table, {item.name for item in fields(kind)})
        try:
            settings[name] = kind(**table)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None
    if settings.get("data") is not None:
        settings["data"] = Path(settings["data"])
    settings["http_any_port"] = "http" not in settings
    return ServeConfig(**settings)


def _check(key: str, address: str) -> None:
    try:
        check_address(address)
    except EndpointError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_keys(prefix: str, table: dict[str, Any], known: set[str]) -> None:
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{prefix}{key}={value!r}: no such setting; expected one of {', '.join(sorted(known))}")
