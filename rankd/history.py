"""The daemon's memory on disk, where it has a directory for one: who writes it, who reads it, and where it goes on."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankd.archive import Archive
from rankd.config import HistoryConfig
from rankd.current import Current
from rankd.reading import Reading
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.writer import Writer
from rankd.streams import Streams

log = logging.getLogger("rankd.history")
T = TypeVar("T")

CLOSE_SECONDS = 3.0
"""For folding the journal into the file at the end; what is committed is safe without."""


class History:
    """Without a directory (None) everything is a memory that ends with the process."""

    def __init__(
        self,
        data: Path | None,
        config: HistoryConfig,
        counters: Counter[str],
        disk_quotas: Callable[[], Mapping[str, int]],
        on_unread: Callable[[str], None],
    ) -> None:
        """`on_unread` hears what keeps it from being read, each time. Raises ConfigError for a directory that cannot
        hold a history, or that another daemon writes."""
        self.writer: Writer | None = None
        self.reading: Reading | None = None
        self._recalling: Reading | None = None
        self._on_committed: Callable[[list[Entry | AlertEntry]], Any] = lambda entries: None
        self._on_fault: Callable[[StoreError | None], Any] = lambda error: None
        if data is not None:
            self.writer = Writer(
                data,
                config,
                on_committed=lambda entries: self._on_committed(entries),
                on_fault=lambda error: self._on_fault(error),
                disk_quotas=disk_quotas,
            )
            # Two threads: a layer that is judged anew from all its measurements takes seconds.
            self.reading = Reading(Archive(data), counters, on_unread, self.writer.blame)
            self._recalling = Reading(Archive(data), counters, on_unread, self.writer.blame)
        self.streams = Streams(secrets.token_hex(8) if self.writer is None else self.writer.stream_id)

    def begin(
        self,
        current: Current,
        on_committed: Callable[[list[Entry | AlertEntry]], Any],
        on_fault: Callable[[StoreError | None], Any],
    ) -> None:
        """Bring the numbers and what is current to where the last daemon was, and start to write. The two are called on
        the writer's thread. Raises StoreError."""
        self._on_committed, self._on_fault = on_committed, on_fault
        if self.writer is not None and self.reading is not None:
            try:
                self._load(self.reading, current)
            except StoreError as error:
                if error.kind != "damaged":
                    raise
                self.writer.begin_anew(error)
                self.streams.stream_id = self.writer.stream_id
                self._load(self.reading, current)
            self.writer.start()

    def _load(self, reading: Reading, current: Current) -> None:
        reading.ask_and_wait(lambda archive: archive.load(self.streams, current))

    @property
    def overgrown(self) -> str | None:
        """What is to be said of a log that grows without bound; None where it does not."""
        return None if self.writer is None else self.writer.overgrown

    @property
    def moved_aside(self) -> Path | None:
        """The former history, where it was damaged."""
        return None if self.writer is None else self.writer.moved_aside

    async def last_steps(self, run: str) -> Mapping[tuple[str, str], int] | None:
        """(layer, role) → the step recorded last. None where there is no history, or where it cannot be read just
        now."""
        return await _ask(self.reading, lambda archive: archive.last_steps(run))

    async def recall(self, question: Callable[[Archive], T]) -> T | None:
        """What may take long to find; None as in `last_steps`."""
        return await _ask(self._recalling, question)

    def look_anew(self) -> None:
        """Let go of the file that is read: after a fault another may be in its place, and SQLite's index of the log is
        shared by all connections of a process as long as one of them is open."""
        for reading in (self.reading, self._recalling):
            if reading is not None:
                reading.look_anew()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all is on disk; whether it is."""
        return self.writer is None or self.writer.flush(timeout_seconds)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close(CLOSE_SECONDS)
        for reading in (self.reading, self._recalling):
            if reading is not None:
                reading.close()


async def _ask(reading: Reading | None, question: Callable[[Archive], T]) -> T | None:
    if reading is None:
        return None
    try:
        return await reading.ask(question)
    except StoreError:
        return None
