"""Every default and limit of the daemon, each with its reason; checked on construction.

Nothing here reads argv, the environment or files: that is the CLI's, which hands over what it found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rankd.judge import DetectConfig
from rankd.plan import MeasureConfig
from rankd_client.endpoints import EndpointError, check_address, default_url, endpoints_of, is_discovery, is_loopback
from rankd_client.wire import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

DEFAULT_HTTP = "127.0.0.1:7780"
EXECUTOR_NAMES = ("threads", "inline")

DEVICES = r"auto|cpu|cuda:\d+(,cuda:\d+)*"

MAX_RUNS = 4096
"""One heartbeat may have to name them all, 0.6 kB each with the longest names, in a body of 4 MiB."""


class ConfigError(ValueError):
    """A setting that cannot be used: names the key, the value and what was expected."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may make the daemon hold, and how long things may take."""

    credit_bytes: int = 16 << 20
    """Payload one connection may have under way: one chunk on its way while the other is taken in. Connections that
    come when most is granted get less, down to one chunk of 4 MiB."""

    total_credit_bytes: int = 1 << 30
    """Credit of all connections together: what may lie in receive queues at worst. Bounds the number of connections."""

    max_connections: int = 1024
    """Of each socket. Pushing ones also need credit, 4 MiB each at least."""

    max_connections_per_peer: int = 256
    """Of one address (a host, or all that come through one gateway), over ipc of one user; for each socket."""

    max_lent_bytes: int = 64 << 30
    """Memory of clients on this host that is mapped to be read, of all together. It is theirs, but page tables for it
    take 2 MiB for each GiB here, and none of it is freed while it is mapped."""

    max_lent_bytes_per_connection: int = 16 << 30
    """An arena has twice what one push takes, 128 MiB unless the trainer asks for more."""

    chunk_bytes: int = DEFAULT_CHUNK_BYTES

    max_layer_bytes: int = 1 << 30
    """One matrix: a 128k × 4k embedding in bfloat16."""

    max_assembly_bytes: int = 2 << 30
    """Unfinished layers of all peers together; at least two of the largest."""

    max_open_layers: int = 16_384
    """Unfinished layers by number, because a shard may be tiny."""

    max_open_pieces: int = 1 << 20
    """Rectangles and ranges of all shards of unfinished layers, for the same reason: up to 1 kB each. A job of 512
    processes, each with one piece of 300 layers, has 153,600."""

    assembly_timeout_seconds: float = 60.0
    """An unfinished layer of which nothing came for so long stays unfinished: a process is gone or at another step."""

    max_mailbox_bytes: int = 1 << 30
    """Snapshots that wait for measuring. Newest wins before this is reached unless many large layers are watched."""

    max_runs: int = 1024
    """At most MAX_RUNS."""
    max_layers_per_run: int = 16_384
    max_layers: int = 262_144
    """Of all runs together: each holds 6 kB of detector state and firing alerts at worst, 1.5 GiB in all. A run that is
    read back from the history comes whole, and may exceed it by its own."""

    run_idle_seconds: float = 3600.0
    """A run that has been silent this long gives up its place when room is wanted for another."""

    max_recent_alerts: int = 10_000
    max_recent_measurements: int = 16_384
    """Events kept for subscribers that missed some; about 1 kB each."""

    heartbeat_seconds: float = 1.0
    peer_timeout_seconds: float = 30.0
    """A connection silent for this long is forgotten and its credit given back; its client will say hello again."""

    trainer_grace_seconds: float = 10.0
    """A trainer whose connection broke has this long to come back before it counts as gone: a client is back within a
    second or two."""

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
        if not 0.01 <= self.heartbeat_seconds <= 3600:
            raise ConfigError(f"limits.heartbeat_seconds={self.heartbeat_seconds}: expected 0.01 to 3600 seconds")
        if self.max_runs > MAX_RUNS:
            raise ConfigError(f"limits.max_runs={self.max_runs}: expected at most {MAX_RUNS}")
        if self.peer_timeout_seconds < 3 * self.heartbeat_seconds:
            raise ConfigError(
                f"limits.peer_timeout_seconds={self.peer_timeout_seconds}: expected at least three times "
                f"limits.heartbeat_seconds={self.heartbeat_seconds}"
            )
        for smaller, larger in (
            ("chunk_bytes", "credit_bytes"),
            ("credit_bytes", "total_credit_bytes"),
            ("max_layer_bytes", "max_assembly_bytes"),
            ("max_layer_bytes", "max_mailbox_bytes"),
            ("max_connections_per_peer", "max_connections"),
            ("max_lent_bytes_per_connection", "max_lent_bytes"),
            ("max_layers_per_run", "max_layers"),
        ):
            if getattr(self, smaller) > getattr(self, larger):
                raise ConfigError(
                    f"limits.{smaller}={getattr(self, smaller)}: expected at most limits.{larger}"
                    f"={getattr(self, larger)}"
                )


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """The history on disk."""

    max_age_days: float = 365.0
    """Measurements older than this are deleted; alerts go with the last of their run."""

    max_bytes: int = 10 << 30
    """Of the database file. The namespace that has most in it gives first: its oldest measurements, those of runs that
    have ended before those of others."""

    patience_seconds: float = 5.0
    """A commit that takes longer counts as failed: alerts go on without the history until it answers again."""

    max_pending: int = 100_000
    """Measurements kept in memory while the history cannot be written; about 1 kB each. The oldest go first."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"history.{item.name}={value!r}: expected a positive number")


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
    while_stdin: bool = False
    """Stop when standard input ends: for a daemon that must not outlive the process which started it."""
    keys: Path | None = None
    """Directory of a keyring that is there; None: there is none."""
    discovery: Path | None = None
    """File on a shared disk that says where this daemon is, while it is there."""
    advertise: str = ""
    """Host name that the discovery file gives, where a socket listens on all addresses; "": the host's own."""
    http_hosts: tuple[str, ...] = ()
    """Further names that may stand in the Host header of HTTP requests, such as a proxy's."""
    limits: Limits = field(default_factory=Limits)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(DEVICES, self.device):
            raise ConfigError(f"device={self.device!r}: expected auto, cpu, cuda:N or cuda:N,cuda:M,…")
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
        if exposed and not self.insecure and self.keys is None:
            raise ConfigError(
                f"{', '.join(exposed)} would listen beyond loopback without keys: anyone who can reach it could push "
                "and listen; expected keys (make them with `rankd keys new NAME`), a loopback or ipc address, or "
                "--insecure"
            )
        if not re.fullmatch(r"[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]", self.advertise):
            raise ConfigError(f"advertise={self.advertise!r}: expected a host name or address, an IPv6 one in brackets")
        for name in self.http_hosts:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", name):
                raise ConfigError(f"http_hosts={name!r}: expected host names without a port")

    @property
    def asks_for_keys(self) -> bool:
        """Whether every TCP socket asks for a key, and HTTP beyond loopback for the keyring's token."""
        return self.keys is not None and not self.insecure


TABLES = {"limits": Limits, "history": HistoryConfig, "detect": DetectConfig, "measure": MeasureConfig}

SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("url", "push", "alerts", "query", "http", "device", "executor", "advertise"), str),
    **dict.fromkeys(("data", "keys", "discovery"), str | Path),
    **dict.fromkeys(("insecure", "while_stdin"), bool),
    **{"http_hosts": list, **dict.fromkeys(TABLES, dict)},
}
"""What a configuration may hold, and of which type."""


def serve_config(settings: dict[str, Any]) -> ServeConfig:
    """A ServeConfig of `settings` as the CLI merged them (file < environment < flags): the keys of SETTINGS, of which
    those of TABLES are tables. Raises ConfigError for what is unknown."""
    settings = {key: value for key, value in settings.items() if value is not None}
    _check_keys("", settings, SETTINGS)
    _check_types("", settings, SETTINGS)
    url = settings.pop("url", None) or default_url()
    if is_discovery(url):
        raise ConfigError(
            f"url={url!r} is where others find a daemon; expected ipc://DIR or tcp://HOST:PORT to listen on, beside "
            "--discovery FILE"
        )
    try:
        endpoints = endpoints_of(url)
    except EndpointError as error:
        raise ConfigError(str(error)) from None
    for key in ("push", "alerts", "query"):
        settings[key] = settings.get(key) or getattr(endpoints, key)
    for name, kind in TABLES.items():
        settings[name] = _read_table(name, kind, settings.get(name, {}))
    for key in ("data", "keys", "discovery"):
        if key in settings:
            settings[key] = Path(settings[key])
    settings["http_hosts"] = tuple(settings.get("http_hosts", ()))
    settings["http_any_port"] = "http" not in settings
    return ServeConfig(**settings)


def detect_config(table: dict[str, Any]) -> DetectConfig:
    """The settings of the rules, from the table [detect] alone. Raises ConfigError."""
    config: DetectConfig = _read_table("detect", DetectConfig, table)
    return config


_TYPE_NAMES: dict[Any, str] = {
    **{str: "a string", dict: "a table", list: "a list of strings", list | tuple: "a list"},
    **{bool: "true or false", float: "a number", int: "an integer"},
}


def _read_table(name: str, kind: type[Any], table: dict[str, Any]) -> Any:
    """The dataclass `kind` of a table; its defaults say of which type each key is (TOML has lists for tuples)."""
    defaults = kind()
    types: dict[str, Any] = {item.name: type(getattr(defaults, item.name)) for item in fields(kind)}
    types |= {key: list | tuple for key, default in types.items() if default is tuple}
    _check_keys(f"{name}.", table, types)
    _check_types(f"{name}.", table, types)
    try:
        return kind(**table)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{name}.{error}") from None


def _check(key: str, address: str) -> None:
    try:
        check_address(address)
    except EndpointError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_types(prefix: str, table: dict[str, Any], types: Mapping[str, type]) -> None:
    """A setting of another type than its key's, such as insecure = "no", which would count as true."""
    for key, value in table.items():
        kind = types[key]
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{prefix}{key}={value!r}: expected {_TYPE_NAMES.get(kind, 'a path')}")


def _check_keys(prefix: str, table: dict[str, Any], known: Collection[str]) -> None:
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{prefix}{key}={value!r}: no such setting; expected one of {', '.join(sorted(known))}")
