"""Sockets of the system, bound and not listening yet."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def arena_path(push_path: Path) -> Path:
    """Of the socket by which memory is lent, where pushes come by `push_path`."""
    return push_path.with_name("arena.sock" if push_path.name == "push.sock" else f"{push_path.name}.arena")


def bind_path(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        bound.bind(path)
        os.chmod(path, 0o600)  # noqa: PTH101
    except OSError:
        bound.close()
        raise
    return bound


def bind_port(address: str) -> socket.socket:
    """Of tcp://HOST:PORT, HOST a name or number, an IPv6 number in brackets, or * for every address."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    host = "0.0.0.0" if host == "*" else host.strip("[]")
    info = socket.getaddrinfo(host, int(port), family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(info[0][4])
    except OSError:
        bound.close()
        raise
    return bound
