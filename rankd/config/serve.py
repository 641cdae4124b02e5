"""What `rankd serve` runs with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from rankd.config.error import ConfigError
from rankd.config.limits import Limits
from rankd.config.ray import RayConfig
from rankd.judge import DetectConfig
from rankd.plan import MeasureConfig
from rankd_client.endpoints import EndpointError, check_address, is_loopback

DEFAULT_HTTP = "127.0.0.1:7780"
EXECUTOR_NAMES = ("auto", "threads", "processes", "inline", "ray")
RAY_URL = "ray://"
"""Before HOST:PORT of a cluster that is joined through its client server."""

DEVICES = r"auto|cpu|cuda|cuda:\d+(,cuda:\d+)*"


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
    executor: str = "auto"
    """auto: threads, but a process for each of several GPUs."""
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
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(DEVICES, self.device):
            raise ConfigError(f"device={self.device!r}: expected auto, cpu, cuda, cuda:N or cuda:N,cuda:M,…")
        _check_executor(self.executor, self.device)
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


def _check_executor(name: str, device: str) -> None:
    if name.startswith(RAY_URL):
        try:
            check_address(name.replace(RAY_URL, "tcp://", 1))
        except EndpointError:
            raise ConfigError(f"executor={name!r}: expected ray://HOST:PORT") from None
    elif name not in EXECUTOR_NAMES:
        raise ConfigError(f"executor={name!r}: expected {', '.join(EXECUTOR_NAMES)} or ray://HOST:PORT")
    if name.startswith("ray") and device.startswith("cuda"):
        raise ConfigError(f"device={device!r}: expected auto or cpu, because Ray says who gets which GPU")


def _check(key: str, address: str) -> None:
    try:
        check_address(address)
    except EndpointError as error:
        raise ConfigError(f"{key}: {error}") from None
