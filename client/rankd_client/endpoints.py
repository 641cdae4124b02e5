"""One URL names a daemon; from it come the three socket addresses. Standard library only."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path on Linux, less the closing NUL."""

DISCOVERY_VERSION = 1
MAX_DISCOVERY_BYTES = 64 << 10
EXPECTED = "ipc://DIR or tcp://HOST:PORT, or file:///PATH of a discovery file"

_SOCKETS = ("push", "alerts", "query")


class EndpointError(ValueError):
    """A daemon URL that cannot be used; the message names it and what was expected."""


class NotThereYet(EndpointError):
    """The discovery file is missing: no daemon is up, or none has been yet."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """ZeroMQ addresses of a daemon's three sockets."""

    push: str
    alerts: str
    query: str


def default_url() -> str:
    """RANKD_URL, else `ipc://` in the user's own runtime directory: loopback TCP is open to every user of the host."""
    if url := os.environ.get("RANKD_URL"):
        return url
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return f"ipc://{runtime}/rankd"
    return f"ipc://{state_directory()}/rankd"


def state_directory() -> Path:
    """The user's own, for what programs leave behind: XDG_STATE_HOME, else `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def endpoints_of(url: str) -> Endpoints:
    """The three addresses that `url` stands for: `ipc://DIR` or `tcp://HOST:PORT` (alerts on PORT+1, query on PORT+2;
    port 0 stays 0 for each), or what the file of a `file:///PATH` says now. Raises EndpointError."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return read_discovery(discovery_path(url))
    if parts.scheme == "ipc":
        directory = Path(url.removeprefix("ipc://"))
        if directory.name in {f"{name}.sock" for name in _SOCKETS}:  # one of the three, given for the whole
            directory = directory.parent
        return Endpoints(*(check_address(f"ipc://{directory}/{name}.sock") for name in _SOCKETS))
    if parts.scheme == "tcp":
        check_address(url)
        host, port = url.removeprefix("tcp://").rsplit(":", 1)
        first = int(port)
        if first > 65533:
            raise EndpointError(f"url={url!r}: alerts and query need the two ports above; expected a port up to 65533")
        ports = (first, first + 1, first + 2) if first else (0, 0, 0)
        return Endpoints(*(f"tcp://{host}:{p}" for p in ports))
    raise EndpointError(f"url={url!r}: expected {EXPECTED}")


def is_discovery(url: str) -> bool:
    """Whether `url` names a discovery file: what it says may be another address each time it is read."""
    return url.startswith("file:")


def discovery_path(url: str) -> Path:
    """The file of a `file:///PATH`. Raises EndpointError."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise EndpointError(f"url={url!r}: expected file:///PATH, an absolute path")
    return Path(path)


def locate(address: str, socket: str) -> str:
    """`address` itself; of a discovery file's URL the address of `socket` ("push", "alerts" or "query") that it gives
    now. To be asked before each connection: the next daemon may be on another node. Raises EndpointError, and
    NotThereYet where the file is missing."""
    if not is_discovery(address):
        return address
    found: str = getattr(endpoints_of(address), socket)
    return found


def read_discovery(path: Path) -> Endpoints:
    """What the daemon that wrote `path` listens on. Raises EndpointError where that is not known to be this user's or
    root's word: whoever writes the file receives the weights. NotThereYet where it is missing."""
    fields = discovery_fields(path)
    return Endpoints(*(fields[name] for name in _SOCKETS))


def discovery_fields(path: Path) -> dict[str, Any]:
    """All that is in a discovery file, its three addresses checked. Raises as `read_discovery`."""
    content = _read_own(path)
    try:
        fields: Any = json.loads(content)
        if not isinstance(fields, dict) or fields.get("version") != DISCOVERY_VERSION:
            raise ValueError(f"expected version {DISCOVERY_VERSION}")
        for name in _SOCKETS:
            address = check_address(str(fields.get(name)))
            if not address.isprintable() or (address.startswith("tcp://") and address.endswith(":0")):
                raise ValueError(f"{address!r}: nobody can listen there")
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"{str(path)!r}: expected the discovery file of a rankd; {error}") from None
    return fields


def _read_own(path: Path) -> bytes:
    """What is in a regular file of this user or root which others cannot write to; looked at once it is open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotThereYet(f"{str(path)!r}: no such file; expected the discovery file of a running rankd") from None
    except OSError as error:
        raise EndpointError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise EndpointError(f"{str(path)!r}: expected a regular file")
        if info.st_uid not in (os.getuid(), 0):
            raise EndpointError(f"{str(path)!r} belongs to user id {info.st_uid}; expected {os.getuid()} (this user)")
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EndpointError(f"{str(path)!r} can be written by others; expected mode 0644")
        return os.read(descriptor, MAX_DISCOVERY_BYTES)
    except OSError as error:
        raise EndpointError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def check_address(address: str) -> str:
    """`address` itself, if it is an ipc path or tcp host and port that a socket can have. Raises EndpointError."""
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if not path.startswith("/"):
            raise EndpointError(f"{address!r}: expected an absolute path, such as ipc:///run/user/1000/rankd")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise EndpointError(
                f"{address!r}: a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes, this one "
                f"{len(os.fsencode(path))}; choose a shorter directory"
            )
        return address
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise EndpointError(f"{address!r}: expected tcp://HOST:PORT with a port from 0 to 65535")
        return address
    raise EndpointError(f"{address!r}: expected ipc://PATH or tcp://HOST:PORT")


def check_owner(address: str) -> None:
    """Raise EndpointError unless an ipc socket's directory, where it exists, is this user's (or root's): whoever owns
    the directory receives the weights. TCP addresses pass; keys are what protects those."""
    if not address.startswith("ipc://"):
        return
    directory = Path(address.removeprefix("ipc://")).parent
    try:
        info = directory.stat()
    except FileNotFoundError:
        return  # no daemon yet
    except OSError as error:
        raise EndpointError(f"{address!r}: cannot look at {directory}: {error.strerror}") from None
    if info.st_uid not in (os.getuid(), 0):
        raise EndpointError(
            f"{address!r}: {directory} belongs to user id {info.st_uid}; expected {os.getuid()} (this user)"
        )
    if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
        raise EndpointError(f"{address!r}: {directory} is writable by everyone; expected mode 0700")


def is_loopback(address: str) -> bool:
    """Whether only this host can reach `address` (ipc, or a loopback host name or address)."""
    if address.startswith("ipc://"):
        return True
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # a name: whatever it stands for today
