"""Settings as a user gave them → what the daemon runs with. Each is checked by name and by type."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rankd.config.error import ConfigError
from rankd.config.limits import Limits
from rankd.config.ray import RayConfig
from rankd.config.serve import HistoryConfig, ServeConfig
from rankd.judge import DetectConfig
from rankd.plan import MeasureConfig
from rankd_client.endpoints import EndpointError, default_url, endpoints_of, is_discovery

TABLES: dict[str, type[Any]] = {
    "limits": Limits,
    "history": HistoryConfig,
    "detect": DetectConfig,
    "measure": MeasureConfig,
    "ray": RayConfig,
}

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
