"""Who is at the other end of a socket, and whether there is room for one more."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

NUM_SPARE_FILES = 64
"""Descriptors that must be free before a connection is taken: it needs three, one of them libzmq's, which aborts the
process where it gets none (errno_assert in ipc_listener.cpp, 4.3.5); the history and HTTP open some as well."""

_CREDENTIALS = struct.Struct("3i")


def identify(accepted: socket.socket, address: object) -> tuple[str, str, int | None]:
    """(what connections are counted by, name for logs, user id or None where the system cannot tell)."""
    if accepted.family != socket.AF_UNIX:
        assert isinstance(address, tuple)
        host = str(address[0]).removeprefix("::ffff:")
        return host, f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}", None
    if not hasattr(socket, "SO_PEERCRED"):  # then the directory's mode is what keeps others out
        return "local", "local", None
    raw = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return f"uid {uid}", f"uid {uid} pid {pid}", uid


def has_spare_files(fd: int) -> bool:
    """Whether NUM_SPARE_FILES more can be opened; tried with copies of `fd`, some microseconds. One is there at a time:
    libzmq may need one just then."""
    lowest = 0
    try:
        for _ in range(NUM_SPARE_FILES):
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
            os.close(copy)
            lowest = copy + 1
    except OSError:
        return False
    return True
