"""Where the daemon's settings come from: defaults < file < environment < flags. Checked in `rankd.config`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomllib

FILE_NAME = "rankd.toml"
NO_FILE = "off"
TABLES = ("limits", "history", "detect", "measure", "ray")


def find_file(given: str | None, warn: Callable[[str], None]) -> Path | None:
    """The file to read: the one that was `given`, by flag or environment ("off": none), else ./rankd.toml where nobody
    else could have written it, else the user's own; None where there is none."""
    if given is not None:
        return None if given == NO_FILE else Path(given)
    here = Path(FILE_NAME)
    if (why_not := _not_ours(here)) is None:
        return here
    if why_not:
        warn(f"{here.resolve()} is not used: {why_not}")
    config_home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    own = Path(config_home) / "rankd" / FILE_NAME
    return own if own.is_file() else None


def _not_ours(path: Path) -> str | None:
    """Why a file that lies about is not to be believed: whoever starts a daemon in a directory of others must not get
    their settings. "" where there is none, None where it may be used."""
    try:
        info = path.stat()
    except OSError:
        return ""
    if not stat.S_ISREG(info.st_mode):
        return "it is no regular file"
    if info.st_uid not in (os.getuid(), 0):
        return f"it belongs to user id {info.st_uid}; expected {os.getuid()} (this user) or root"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"it has mode {stat.S_IMODE(info.st_mode):04o}, others can write to it; expected 0644"
    return None


def read_file(path: Path | None) -> dict[str, Any]:
    """The settings of a TOML file: the keys of [serve] at the top, and the tables. Raises ConfigError."""
    from rankd.config import SETTINGS, ConfigError

    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config={str(path)!r}: expected a TOML file; {error}") from None
    serve_table = content.pop("serve", {})
    if not isinstance(serve_table, dict):
        raise ConfigError(f"config={str(path)!r}: serve={serve_table!r}; expected a table")
    if unknown := sorted(set(content) - set(TABLES)):
        expected = f"serve, {', '.join(TABLES[:-1])} or {TABLES[-1]}"
        raise ConfigError(f"config={str(path)!r}: no such table {unknown[0]!r}; expected {expected}")
    if inside := sorted(set(serve_table) & set(TABLES)):
        raise ConfigError(f"config={str(path)!r}: serve.{inside[0]}; expected [{inside[0]}], a table of its own")
    if unknown := sorted(set(serve_table) - set(SETTINGS)):
        expected = ", ".join(sorted(set(SETTINGS) - set(TABLES)))
        raise ConfigError(f"config={str(path)!r}: [serve] {unknown[0]}: no such setting; expected one of {expected}")
    return {**serve_table, **content}


def find_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the directory of the keyring: the one they name, which must be there, else the user's own where
    there is one. Raises ConfigError."""
    from rankd.auth import Keyring, default_directory
    from rankd.config import ConfigError

    named = settings.get("keys")
    if isinstance(named, str | Path):
        if not Keyring(Path(named)).exists:
            raise ConfigError(f"keys={str(named)!r}: no keyring; make one: rankd keys new NAME --keys {named}")
        return settings
    own = default_directory()
    return {**settings, "keys": own} if named is None and Keyring(own).exists else settings
