"""How many files the daemon behind an ipc address has open: with none left, it takes in nobody and cannot say why."""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from rankd.gate.peers import NUM_SPARE_FILES

CONNECT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """Of the process `pid`; `limit` is its soft one."""

    pid: int
    num_open: int
    limit: int

    @property
    def used_up(self) -> bool:
        """Whether so few are left that the gate takes no connection."""
        return self.limit - self.num_open < NUM_SPARE_FILES


def open_files_of(address: str) -> OpenFiles | None:
    """Of the process that listens on an ipc address; None where that cannot be found out."""
    if not address.startswith("ipc://"):
        return None
    try:
        pid = _listener(address.removeprefix("ipc://"))
        process = Path("/proc") / str(pid)
        found = re.search(r"^Max open files\s+(\d+)", (process / "limits").read_text(), re.MULTILINE)
        num_open = sum(1 for _ in (process / "fd").iterdir())
        return OpenFiles(pid, num_open, int(found[1])) if found else None
    except OSError:
        return None


def _listener(path: str) -> int:
    """The kernel takes the connection, and tells who listens, even where he has no file for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(CONNECT_SECONDS)
        peer.connect(path)
        pid: int = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
        return pid
