"""A client's end of the arena socket, honest or not."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankd_client import memfd
from rankd_client.wire import BLOCK_HEADER_BYTES, Lend, decode_handover, encode_handover

SESSION = bytes(range(16))
PATIENCE_SECONDS = 30.0


class Memory:
    """One block as a client makes it, of `num_bytes` behind its header."""

    def __init__(self, num_bytes: int = 4096, epoch: int = 1, seals: int = memfd.SEALS, touched: bool = True) -> None:
        self.size = BLOCK_HEADER_BYTES + num_bytes
        self.fd = memfd.create("rankd-test", self.size)
        self.array = memfd.map_bytes(self.size, self.fd)
        self.view = memoryview(self.array).cast("B")
        if touched:
            self.view[:] = bytes(self.size)
            self.set_epoch(epoch)
        if seals == memfd.SEALS:
            memfd.seal(self.fd)
        elif seals:
            import fcntl

            fcntl.fcntl(self.fd, 1033, seals)

    def set_epoch(self, epoch: int) -> None:
        self.view[:8].cast("Q")[0] = epoch

    def close(self) -> None:
        os.close(self.fd)


def lend_of(token: str, *blocks: Memory, **fields: Any) -> Lend:
    values: dict[str, Any] = {"epoch": 1, "first_block": 0, "sizes": tuple(block.size for block in blocks)}
    return Lend(**{"token": token, "session": SESSION, **values, **fields})


def num_mappings(pid: int | str = "self") -> int:
    """Of memfds that tests and clients lend, in a process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return maps.count("memfd:rankd-test") + maps.count("memfd:rankd-arena")


class Caller:
    """A connection to an arena socket."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(str(path))

    def send(self, packet: bytes | Lend, fds: Sequence[int] = ()) -> None:
        data = packet if isinstance(packet, bytes) else encode_handover(packet)
        socket.send_fds(self.socket, [data], list(fds))

    def hear(self) -> Any:
        """The answer; None where the connection ended instead."""
        packet = self.socket.recv(4096)
        return decode_handover(packet) if packet else None

    def ask(self, packet: bytes | Lend, fds: Sequence[int] = ()) -> Any:
        self.send(packet, fds)
        return self.hear()

    def close(self) -> None:
        self.socket.close()
