"""A network between two ends of TCP that is as slow as it is told to be, loses connections, or goes silent."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

PIECE_BYTES = 16 << 10
QUEUED_PIECES = 16
"""What is under way in one direction at most, with the kernel's own buffers: a slow network pushes back."""


class Proxy:
    """Listens on `port` of 127.0.0.1 and leads to `host`:`target`. All may be changed while connections are open:

    bytes_per_second: in each direction of each connection; None: as fast as it goes.
    delay_seconds: one way.
    silence(): connections stay open, and new ones are accepted, but nothing passes until speak(); then what waits does.
    refusing: new connections are closed at once.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self.bytes_per_second: float | None = None
        self.delay_seconds = 0.0
        self.refusing = False
        self.num_connections = 0
        """That were accepted so far."""
        self.num_bytes = 0
        """That passed, in both directions."""
        self._target = host, target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop, self._passing = asyncio.Event(), asyncio.Event()
        self._passing.set()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()

    def cut(self) -> None:
        """Every connection breaks, at both ends, as if by a reset; new ones are taken."""
        self._call(self._reset)

    def silence(self) -> None:
        self._call(self._passing.clear)

    def speak(self) -> None:
        self._call(self._passing.set)

    def close(self) -> None:
        self._call(self._stop.set)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        done.wait()

    def _reset(self) -> None:
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._accept, sock=self._listening):
            await self._stop.wait()
            self._reset()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._ends.add(writer)
        if self.refusing:
            writer.transport.abort()
            return
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._ends.add(their_writer)
        self._begin(self._lead(reader, their_writer))
        self._begin(self._lead(their_reader, writer))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of a connection, until either end has gone; then the other goes too."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_PIECES)
        departing = self._loop.create_task(self._depart(reader, under_way))
        try:
            await self._arrive(under_way, writer)
        except OSError:
            pass
        finally:
            departing.cancel()
            self._ends.discard(writer)
            writer.transport.abort()

    async def _depart(self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        piece = None
        while piece != b"":  # the last one says that the end has gone
            try:
                piece = await reader.read(PIECE_BYTES)
            except OSError:
                piece = b""
            await under_way.put((self._loop.time() + self.delay_seconds, piece))

    async def _arrive(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while (arrival := await under_way.get())[1]:
            due, piece = arrival
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._passing.wait()
            writer.write(piece)
            await writer.drain()
            self.num_bytes += len(piece)
            if self.bytes_per_second is not None:
                await asyncio.sleep(len(piece) / self.bytes_per_second)
