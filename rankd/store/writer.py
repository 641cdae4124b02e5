"""The thread that writes the history: everything that waits goes into one transaction."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path

from rankd.config import HistoryConfig
from rankd.store.batch import LayerKey
from rankd.store.database import overgrown
from rankd.store.entries import AnyEntry, Entry, oldest_without_alerts
from rankd.store.errors import FAILURES, StoreError
from rankd.store.home import Home
from rankd.store.ledger import Switch
from rankd.store.retention import DiskQuotas

log = logging.getLogger("rankd.store")

MAX_BATCH = 5_000
"""Entries of one transaction, some 100 ms: what came after them waits for it."""

CHORES_EVERY_SECONDS = 30.0
CHORES_EVERY_ROWS = 10_000

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 10.0
CLOSING_RETRY_SECONDS = 0.25


class Writer:
    """Owns the only writing connection, on a thread of its own. The methods below may be called from any thread.

    `on_committed` gets entries, in order, once they are on disk: written now, or found to be there already. `on_fault`
    gets what keeps the history from being written, once for each kind in a row; what waits is kept and tried again
    until it works. It gets None when all that had waited is written: after a fault, and after a `switch_stream`. Both
    run on the writer's thread.

    Raises ConfigError (StoreInUse, PlaceError, SchemaError) for a directory that cannot be used, and StoreError where
    the file cannot be opened now. A damaged file is moved aside (`moved_aside`) and a new one begun; what happens so
    while it runs is told as a fault with `begun_anew`.
    """

    def __init__(
        self,
        data: Path,
        config: HistoryConfig,
        on_committed: Callable[[list[AnyEntry]], None],
        on_fault: Callable[[StoreError | None], None],
        clock: Callable[[], float] = time.time,
        disk_quotas: DiskQuotas | None = None,
    ) -> None:
        self._config = config
        self._on_committed, self._on_fault = on_committed, on_fault
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, AnyEntry]] = deque()
        self._batch: list[tuple[float, AnyEntry]] = []
        self._superseded: Counter[LayerKey] = Counter()
        self._switches: list[tuple[int, Switch]] = []
        """Each with how many entries had been submitted: it is not to be on disk before the last of them."""
        self._num_submitted = self._num_taken = 0
        """Of all entries ever; taken are those written, under way, or given up."""
        self._num_flushing = 0
        self._is_telling = False
        self._close_by: float | None = None
        self._failure: BaseException | None = None  # a mistake of ours
        self._fault: StoreError | None = None
        self._blamed: StoreError | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._retry_at = 0.0
        self._owes_all_clear = False
        self._chores_at = time.monotonic()
        self._more_chores = False
        self.overgrown: str | None = None
        """What is to be said of a log that nobody can empty, as of the last chores."""
        self._num_rows = 0
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._home = Home(data, config, clock, disk_quotas)
        self.stream_id = self._home.stream_id

    @property
    def moved_aside(self) -> Path | None:
        """The former history, where it was damaged."""
        return self._home.moved_aside

    @property
    def num_pending(self) -> int:
        """Entries that are not on disk yet."""
        with self._changed:
            return len(self._batch) + len(self._waiting)

    def begin_anew(self, error: StoreError) -> None:
        """Before `start`: put the file aside, which could be opened and not be read. Raises StoreError."""
        self._home.begin_anew(error)
        self.stream_id = self._home.stream_id

    def blame(self, error: StoreError) -> None:
        """The daemon's reader has found the file damaged where the writer has not looked: it goes aside as if the
        writer had."""
        with self._changed:
            self._blamed = error
            self._changed.notify_all()

    def start(self) -> None:
        self._thread.start()

    def submit(self, *entries: AnyEntry) -> list[AnyEntry]:
        """Have entries written; never waits. Returns entries that were given up for want of room, the oldest without
        alerts first, and all of one snapshot together."""
        if self._failure is not None:
            raise RuntimeError("the history's writer failed") from self._failure
        with self._changed:
            self._waiting.extend((time.monotonic(), entry) for entry in entries)
            self._num_submitted += len(entries)
            dropped = self._drop() if self.num_pending > self._config.max_pending else []
            self._changed.notify_all()
        return dropped

    def superseded(self, run: str, layer: str, role: str) -> None:
        """Count a snapshot of this layer that gave way to another; written with what is written next."""
        with self._changed:
            self._superseded[run, layer, role] += 1

    def switch_stream(self, stream_id: str, bases: Mapping[tuple[str, str], int]) -> None:
        """Begin a stream with the commit that holds the last of what was submitted until now; in it, an event is
        numbered n − base of its (kind, run)."""
        with self._changed:
            self._switches.append((self._num_submitted, (stream_id, dict(bases))))
            self._changed.notify_all()

    def oldest_pending_seconds(self) -> float:
        """For how long the oldest entry that is not on disk has waited; 0 where there is none."""
        with self._changed:
            oldest = self._batch or self._waiting
            return time.monotonic() - oldest[0][0] if oldest else 0.0

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything is on disk, and told. False if it was not in time."""
        with self._changed:
            self._num_flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._has_work(), timeout_seconds)
            finally:
                self._num_flushing -= 1

    def close(self, timeout_seconds: float) -> bool:
        """Write what waits, bring the roll-up up to date, empty the log and let go of the directory. False if it was
        not in time: what is not written then is lost."""
        with self._changed:
            self._close_by = time.monotonic() + timeout_seconds
            self._changed.notify_all()
        if self._thread.ident is None:
            self._home.finish(self._is_late)
        else:
            self._thread.join(timeout_seconds + 2 * CLOSING_RETRY_SECONDS)
        if self._thread.is_alive() or self.num_pending:
            log.error("closed with %d entries that are not in the history", self.num_pending)
        if self._thread.is_alive():  # it still writes: the directory stays its own until the process ends
            return False
        self._home.release()
        return not self.num_pending

    def _drop(self) -> list[AnyEntry]:
        """Make room for a hundredth more than is needed, so that not every entry has to look for what may go."""
        num = min(len(self._waiting), self.num_pending - self._config.max_pending + self._config.max_pending // 100)
        going = oldest_without_alerts([entry for _, entry in self._waiting], num)
        dropped = [entry for at, (_, entry) in enumerate(self._waiting) if at in going]
        self._waiting = deque(item for at, item in enumerate(self._waiting) if at not in going)
        self._num_taken += len(dropped)
        return dropped

    def _has_work(self) -> bool:
        return bool(self._batch or self._waiting or self._switches or self._superseded or self._is_telling)

    def _is_late(self) -> bool:
        return self._close_by is not None and time.monotonic() > self._close_by

    def _wait_seconds(self) -> float:
        """Until there is something to do; 0: now."""
        now = time.monotonic()
        if self._fault is not None:
            soonest = CLOSING_RETRY_SECONDS if self._close_by is not None else LAST_RETRY_SECONDS
            return min(self._retry_at - now, soonest)
        counts = self._superseded and self._num_flushing
        if self._batch or self._waiting or self._switches or counts or self._more_chores or self._close_by is not None:
            return 0.0
        if self._blamed is not None:
            return 0.0
        return self._chores_at + CHORES_EVERY_SECONDS - now

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._home.finish(self._is_late)
        except BaseException as error:
            log.critical("the history's writer failed", exc_info=error)
            self._failure = error

    def _turn(self) -> bool:
        """One commit, one slice of chores, or one failure. False when it is time to close."""
        with self._changed:
            while (seconds := self._wait_seconds()) > 0:
                self._changed.wait(seconds)
                if self._close_by is not None and self._fault is not None:
                    break
            if self._is_late() or (self._close_by is not None and not self._has_work()):
                return False
            if not self._batch:
                num = self._num_next()
                self._batch = [self._waiting.popleft() for _ in range(num)]
                self._num_taken += num
            caught_up = not self._waiting
            superseded = self._superseded.copy()
            switches = [switch for num_before, switch in self._switches if num_before <= self._num_taken]
            blamed, self._blamed = self._blamed, None
        try:
            if blamed is not None:
                self._home.blame(blamed)
            if self._batch or superseded or switches or self._fault is not None:
                self._commit(superseded, switches)
                self._tell(caught_up, switched=bool(switches))
            self._do_chores()
        except (*FAILURES, StoreError) as error:
            self._fail(StoreError.of(error))
        return True

    def _num_next(self) -> int:
        """Of the entries that wait, how many come into the next commit."""
        num = min(len(self._waiting), MAX_BATCH)
        while 0 < num < len(self._waiting) and isinstance(last := self._waiting[num - 1][1], Entry) and last.more:
            num += 1
        return num

    def _commit(self, superseded: Counter[LayerKey], switches: list[Switch]) -> None:
        entries = [entry for _, entry in self._batch]
        self._num_rows += self._home.commit(entries, superseded, switches)
        with self._changed:
            self._batch = []
            self._superseded -= superseded
            del self._switches[: len(switches)]
            self._is_telling = True  # until `_tell` is done, which nothing can keep it from but a mistake of ours
        if entries:
            self._on_committed(entries)

    def _tell(self, caught_up: bool, switched: bool) -> None:
        self._owes_all_clear |= switched or self._fault is not None
        if self._fault is not None:
            log.info("the history is written again")
        self._fault = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        if self._owes_all_clear and caught_up:
            self._owes_all_clear = False
            self._on_fault(None)
        with self._changed:
            self._is_telling = False
            self._changed.notify_all()

    def _do_chores(self) -> None:
        now = time.monotonic()
        due = self._num_rows >= CHORES_EVERY_ROWS or now >= self._chores_at + CHORES_EVERY_SECONDS
        if due or self._more_chores:
            self._num_rows, self._chores_at = 0, now
            self._more_chores = self._home.chore()
            self.overgrown = overgrown(self._home.path)

    def _fail(self, error: StoreError) -> None:
        """Keep what was to be written, and try again later with a new connection."""
        told = self._fault is not None and self._fault.kind == error.kind
        retry_seconds = self._retry_seconds
        self._home.close_ledger()
        if error.kind == "damaged":
            error = self._home.set_aside(error)
        if error.begun_anew and self._fault is None:
            retry_seconds = 0.0
        self._retry_at = time.monotonic() + retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
        self._fault, self._more_chores = error, False
        if not told:
            log.error("%s: %s", self._home.path, error)
            self._on_fault(error)
