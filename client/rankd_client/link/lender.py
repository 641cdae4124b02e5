"""Lends the arena to a daemon on this host, over the socket that its welcome names (docs/protocol.md, Lent memory).

Nothing waits for it: as long as no block is taken, and wherever anything fails, chunks go as ZeroMQ's frames.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from pathlib import Path

from rankd_client import memfd
from rankd_client.arena import Arena, Block
from rankd_client.endpoints import MAX_SOCKET_PATH_BYTES, EndpointError, check_owner
from rankd_client.text import escape
from rankd_client.wire import (
    MAX_BLOCKS,
    MAX_HANDOVER_BYTES,
    Lend,
    Refusal,
    Taken,
    Welcome,
    WireError,
    decode_handover,
    encode_handover,
)

ANSWER_SECONDS = 3.0
"""A daemon that has not taken the memory by then is asked again later."""

RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 600.0
"""Doubled each time that it fails. What forbids it (a container's policy, say) writes a line to some log each time."""


class Lender:
    """Of one link, on its thread. `why`: for what reason nothing is lent, if that is known."""

    def __init__(self, arena: Arena, session: bytes) -> None:
        self._arena = arena
        self._session = session
        self._epoch = 1
        self._offered: list[Block] = []
        """In the order of their numbers; of them, so many are taken:"""
        self._num_taken = 0
        self._door: tuple[str, str] | None = None
        """Path of the socket, and the token to say there; None: the daemon has none for us."""
        self._socket: socket.socket | None = None
        self._answer_by = math.inf
        self._retry_at = 0.0
        self._retry_seconds = RETRY_SECONDS
        self.why = ""

    @property
    def path(self) -> str:
        """By which way snapshots go: "memfd", or "zeromq"."""
        return "memfd" if self._num_taken else "zeromq"

    @property
    def is_asking(self) -> bool:
        """Whether an answer is due."""
        return self._answer_by < math.inf

    @property
    def fd(self) -> int | None:
        """To be polled for reading."""
        return None if self._socket is None else self._socket.fileno()

    def deadline(self) -> float:
        """When `advance` has something to do though nothing was heard, on the clock that it is given."""
        if self._socket is not None:
            return self._answer_by
        return self._retry_at if self._door is not None and self._lendable() else math.inf

    def begin(self, push_address: str, welcome: Welcome) -> None:
        """A daemon said welcome at this address."""
        self.end()
        self._door, self.why = None, "the daemon has no arena socket"
        if welcome.arena_socket and push_address.startswith("ipc://"):
            path = Path(push_address.removeprefix("ipc://")).parent / welcome.arena_socket
            self._door, self.why = (str(path), welcome.arena_token), ""

    def forget(self) -> None:
        """The push connection is closed: whoever says welcome next may be another daemon, and is asked at once."""
        self.end()
        self._door, self._retry_at, self._retry_seconds = None, 0.0, RETRY_SECONDS

    def end(self) -> None:
        """End all loans: the epoch first, so that a daemon that copies what is written from now on knows of it."""
        if self._offered:
            self._epoch += 1
            for block in self._offered:
                block.set_epoch(self._epoch)
        self._offered, self._num_taken, self._answer_by = [], 0, math.inf
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def advance(self, now: float) -> bool:
        """What time, a packet or a grown arena brings about; True where loans have ended by it."""
        if self._socket is None:
            if now >= self.deadline():
                self._try(now, self._connect)
            return False
        was_lending = self._num_taken > 0
        self._try(now, self._receive)
        if self._socket is not None and now >= self._answer_by:
            self.give_up(now, "the daemon does not answer")
        if self._socket is not None and not self.is_asking and len(self._offered) < len(self._lendable()):
            self._try(now, self._offer)
        return was_lending and not self._num_taken

    def number_of(self, block: Block) -> int | None:
        """By which the daemon knows it; None where it does not."""
        return next((number for number, own in enumerate(self._offered[: self._num_taken]) if own is block), None)

    def _lendable(self) -> list[Block]:
        return [block for block in self._arena.blocks if block.memory.fd >= 0][:MAX_BLOCKS]

    def _try(self, now: float, step: Callable[[float], None]) -> None:
        try:
            step(now)
        except (OSError, EndpointError, WireError) as error:
            self.give_up(now, str(error))

    def give_up(self, now: float, why: str) -> None:
        """End all loans, and try again later."""
        self.end()
        self.why = escape(why, 200)
        self._retry_at = now + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _connect(self, now: float) -> None:
        assert self._door is not None
        path, _ = self._door
        check_owner(f"ipc://{path}")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise EndpointError(f"{path}: longer than a socket's path may be")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memfd.close_in_children(self._socket)
        self._socket.setblocking(False)
        self._socket.connect(path)  # done, or refused: a full backlog is refused as well
        self._offer(now)

    def _offer(self, now: float) -> None:
        """Lend what is not lent yet."""
        assert self._socket is not None and self._door is not None
        first, blocks = len(self._offered), self._lendable()[len(self._offered) :]
        for block in blocks:
            block.set_epoch(self._epoch)
        self._offered += blocks
        lend = Lend(self._door[1], self._session, self._epoch, first, tuple(block.size for block in blocks))
        socket.send_fds(self._socket, [encode_handover(lend)], [block.memory.fd for block in blocks])
        self._answer_by = now + ANSWER_SECONDS

    def _receive(self, now: float) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(MAX_HANDOVER_BYTES + 1)
        except BlockingIOError:
            return
        if not packet:
            raise OSError("the daemon closed the arena's connection")
        match decode_handover(packet):
            case Taken(num_blocks) if num_blocks == len(self._offered):
                self._num_taken, self._answer_by = num_blocks, math.inf
                self._retry_seconds, self.why = RETRY_SECONDS, ""
            case Refusal(code, detail):
                raise OSError(f"{code}: {detail}")
            case _:
                raise WireError("wrong_direction", "no answer to what was lent")
