"""A file on a shared disk that says where this daemon is, while it is there: for batch systems, where nobody knows the
node beforehand. Read by `rankd_client.endpoints.read_discovery`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankd.config import ConfigError
from rankd_client.endpoints import DISCOVERY_VERSION, is_loopback

log = logging.getLogger("rankd.discovery")

WILDCARDS = ("0.0.0.0", "*", "[::]", "::")


class DiscoveryFile:
    """Written when the daemon takes pushes, removed at its end if no other daemon has written its own by then.

    Mode 0644: it holds no secret (a CURVE public key is none), and readers trust it by its owner. Raises ConfigError
    where `path` cannot be written, before anything else was begun.
    """

    def __init__(self, path: Path, advertise: str = "") -> None:
        self.path = path
        self._host = socket.gethostname()
        self._advertise = advertise or self._host
        self._written: dict[str, Any] | None = None
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(f"discovery={str(path)!r}: expected a file in a directory that this user can write to")
        if path.exists() and not path.is_file():
            raise ConfigError(f"discovery={str(path)!r}: is there and is no file")

    def write(self, addresses: Mapping[str, str], started: float, public_key: str | None = None) -> None:
        """`addresses`: push, alerts, query and http as they were bound ("off" for none). Replaces what is there in one
        step. Raises OSError."""
        shown = {name: _reachable(address, self._advertise) for name, address in addresses.items()}
        if here := [name for name in ("push", "alerts", "query") if is_loopback(shown[name])]:
            log.warning("discovery=%s: %s can be reached on this host alone", self.path, ", ".join(here))
        self._written = {
            "version": DISCOVERY_VERSION,
            **shown,
            "host": self._host,
            "pid": os.getpid(),
            "started": started,
            "public_key": public_key,
        }
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(self._written) + "\n")
                file.flush()
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
            beside.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise

    def remove(self) -> None:
        """Does nothing where it was not written, or has another daemon's place by now: of a job started again."""
        if self._written is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self.path.read_text(encoding="utf-8")) == self._written:
                self.path.unlink()
        self._written = None


def _reachable(address: str, advertise: str) -> str:
    """`address` (tcp://…, http://…) with a name for others in place of "all of this host's addresses"."""
    scheme, separator, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in ("tcp", "http") or host not in WILDCARDS:
        return address
    return f"{scheme}{separator}{advertise}:{port}"
