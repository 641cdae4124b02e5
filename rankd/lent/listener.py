"""The arena socket: clients of this user hand over the descriptors of their memory, one packet each time."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable

from rankd.config import Limits
from rankd.gate.peers import has_spare_files, identify
from rankd.lent.lenders import Lender, Lenders
from rankd_client.wire import (
    MAX_BLOCKS,
    MAX_HANDOVER_BYTES,
    Lend,
    Refusal,
    Taken,
    WireError,
    decode_handover,
    encode_handover,
)

log = logging.getLogger("rankd.lent")

BACKLOG = 128
SILENT_SECONDS = 3.0
"""Who has lent nothing by then is sent away: an honest client does so as soon as it is connected."""

PAUSE_SECONDS = 1.0

_FD_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_BLOCKS * _FD_BYTES)
"""The kernel closes what does not fit, and says so."""


class ArenaListener:
    """Serves a bound socket on the running event loop, until `close`. Nothing that a peer does ends it."""

    def __init__(self, bound: socket.socket, lenders: Lenders, limits: Limits, counters: Counter[str]) -> None:
        self._bound = bound
        self._lenders = lenders
        self._limits = limits
        self._counters = counters
        self._connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        bound.setblocking(False)
        bound.listen(BACKLOG)
        self._loop.add_reader(bound, self._accept)

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._bound)
        self._bound.close()
        for connection in list(self._connections):
            connection.close()

    def _accept(self) -> None:
        try:
            accepted, address = self._bound.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor is left: who knocks waits in the backlog
            self._loop.remove_reader(self._bound)
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._loop.add_reader, self._bound, self._accept)
            return
        accepted.setblocking(False)
        _, name, uid = identify(accepted, address)
        if uid not in (os.getuid(), 0):
            self._counters["num_arena_strangers"] += 1
            accepted.close()
            return
        if len(self._connections) >= self._limits.max_connections_per_peer or not has_spare_files(accepted.fileno()):
            _answer(accepted, Refusal("too_much_lent", f"{len(self._connections)} connections lend; no room for more"))
            accepted.close()
            return
        self._connections.add(_Connection(accepted, name, self._lenders, self._counters, self._connections.discard))


class _Connection:
    def __init__(
        self,
        accepted: socket.socket,
        name: str,
        lenders: Lenders,
        counters: Counter[str],
        ended: Callable[[_Connection], None],
    ) -> None:
        self._socket = accepted
        self._name = name
        self._lenders = lenders
        self._counters = counters
        self._ended = ended
        self._lender: Lender | None = None
        loop = asyncio.get_running_loop()
        loop.add_reader(accepted, self._read)
        self._patience = loop.call_later(SILENT_SECONDS, self._look)
        self._loop = loop

    def close(self) -> None:
        """Unmaps all that came by it."""
        self._patience.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._lender is not None:
            self._lenders.forget(self._lender)
            self._lender = None
        self._ended(self)

    def _look(self) -> None:
        if self._lender is None:
            self.close()

    def _read(self) -> None:
        try:
            packet, fds, flags = _receive(self._socket)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        try:
            if not packet:  # its end, or nothing at all
                self.close()
                return
            if flags & socket.MSG_CTRUNC:
                raise WireError("bad_memory", f"more than {MAX_BLOCKS} descriptors, or no room for them here")
            self._take(decode_handover(packet), fds)
        except WireError as error:
            self._refuse(error)
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, message: object, fds: list[int]) -> None:
        if not isinstance(message, Lend):
            raise WireError("wrong_direction", f"a {type(message).__name__} from a client")
        self._lender = self._lenders.take(message, fds, self._lender, self.close)
        log.info(
            "lent peer=%s num_blocks=%d num_bytes=%d", self._name, len(self._lender.blocks), self._lender.num_bytes
        )
        _answer(self._socket, Taken(len(self._lender.blocks)))

    def _refuse(self, error: WireError) -> None:
        code = f"num_refused_{error.code}"
        self._counters[code] += 1
        if self._counters[code] in (1, 10, 100, 1000):
            log.warning("refused peer=%s times=%d %s", self._name, self._counters[code], error)
        _answer(self._socket, Refusal(error.code, error.detail))
        self.close()


def _receive(peer: socket.socket) -> tuple[bytes, list[int], int]:
    """A packet, the descriptors with it, and the message's flags."""
    packet, messages, flags, _ = peer.recvmsg(MAX_HANDOVER_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return packet, list(fds), flags


def _answer(peer: socket.socket, message: Taken | Refusal) -> None:
    with contextlib.suppress(OSError):  # it reads nothing, or is gone: its next packet, or its end, shows
        peer.send(encode_handover(message))
