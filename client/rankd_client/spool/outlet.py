"""The outlet of a client with no route to the daemon: a thread writes what the outbox holds to a disk."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankd_client.console import describe, say, show_bytes
from rankd_client.outbox import Outbox
from rankd_client.outletthread import OutletThread
from rankd_client.snapshot import Snapshot
from rankd_client.spool.session import Session
from rankd_client.spool.thinning import BLIND_BELOW
from rankd_client.text import escape
from rankd_client.wire import Chunk, Hello, Plan, Reported, encode

_ARRIVAL_POLL_SECONDS = 0.005
"""A GPU's copies take some milliseconds, and nobody is woken by them."""


class _Done:
    """Of a snapshot that is on disk: nobody reads its memory any more."""

    done = True


class TooLateError(Exception):
    """A close() has run out of time."""


class Spool(OutletThread):
    """An outlet, as a Link is.

    What cannot be written is dropped and counted, with one line on stderr for each kind of fault. A disk that hangs
    holds up this thread alone; the outbox's newest wins goes on.
    """

    path = "spool"
    connected = False

    def __init__(self, root: Path, max_bytes: int, hello: Hello, outbox: Outbox) -> None:
        super().__init__("rankd-spool")
        self.plan = Plan()
        self.tell: Callable[[], Mapping[str, Any]] = dict  # there is nobody to hear it
        self.refused: dict[str, str] = {}
        self.num_dropped = 0
        self._root = root
        self._run_name = hello.run
        self._outbox = outbox
        self._session = Session(root, max_bytes, hello)
        self._max_bytes = max_bytes
        self._faults: Counter[str] = Counter()
        self._awake = threading.Event()

    # Any thread ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._awake.set()

    def join(self, timeout_seconds: float) -> None:
        super().join(timeout_seconds)
        if self._thread.is_alive():
            num_left = self._outbox.num_unsent
            say(f"the disk of {self._shown} does not answer: {num_left} snapshots are not written")

    # The spool's own thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._finished():
                self._awake.wait(self._wait_seconds())
                self._awake.clear()
                self._drain()
            self._session.close()
            self._say_what_is_there()
        except Exception as error:  # ours: the training process must not hear of it but once
            say(f"nothing more is spooled, training goes on: {describe(error)}")

    def _finished(self) -> bool:
        return self._stop_at is not None and (self._outbox.num_unsent == 0 or self._is_late())

    def _wait_seconds(self) -> float | None:
        if self._outbox.has_arriving:
            return _ARRIVAL_POLL_SECONDS
        return None if self._stop_at is None else min(0.01, max(0.0, self._stop_at - time.monotonic()))

    def _drain(self) -> None:
        while (snapshot := self._outbox.next_unsent()) is not None:
            try:
                self._keep(snapshot.key, snapshot.next_chunk(snapshot.num_bytes), snapshot.num_returns)
            except TooLateError:
                return
            finally:
                self._done(snapshot)
        reports = self._outbox.reports
        while (report := reports.next()) is not None:
            try:
                self._keep((report.layer, report.role, "numbers"), report.message(), report.num_returns)
            except TooLateError:
                return
            finally:
                reports.sent(report)
                reports.settle(report.name)

    def _done(self, snapshot: Snapshot) -> None:
        self._outbox.sent(snapshot, snapshot.num_bytes, _Done())
        self._outbox.settle(snapshot.layer, snapshot.role, snapshot.step)

    def _keep(self, key: tuple[str, ...], message: Chunk | Reported, num_returns: int) -> None:
        """On disk, or counted."""
        try:
            header, body = encode(message)
            if not self._session.keep(key, message.step, bytes(header), body, self._on_time, num_returns):
                why = f"RANKD_SPOOL_BYTES={self._max_bytes} are used up; `rankd sync` makes room"
                self._drop("the spool is full", why)
        except TooLateError:
            self._drop("late", "a close() did not leave it the time to write all")
            raise
        except OSError as error:
            self._drop(error.strerror or f"errno {error.errno}", describe(error))
        except Exception as error:  # ours: it costs this snapshot, and no other
            self._drop(type(error).__name__, describe(error))

    def _on_time(self) -> None:
        if self._is_late():
            raise TooLateError

    def _drop(self, kind: str, why: str) -> None:
        self.num_dropped += 1
        self._faults[kind] += 1
        if self._faults[kind] == 1:
            say(f"{self._shown}: {escape(why, 300)}; what cannot be written is dropped, training goes on")

    @property
    def _shown(self) -> str:
        return escape(str(self._root), 500)

    def _say_what_is_there(self) -> None:
        """One line at the end: what is there, what is not, and what to do with it."""
        session = self._session
        run = escape(self._run_name)
        words = [f"{session.num_kept} snapshots of {run} ({show_bytes(session.kept_bytes)}) spooled"]
        if session.num_thinned:
            words.append(
                f"{session.num_thinned} thinned out, to {2**session.finest} of a layer in each doubling of step"
            )
        if session.num_thinned and session.finest < BLIND_BELOW:
            words[-1] += " (too few for the default rule: give RANKD_SPOOL_BYTES more)"
        num_overtaken = self._outbox.num_replaced + self._outbox.num_dropped
        if num_overtaken:
            words.append(f"{num_overtaken} overtaken by newer ones before they could be written")
        if self.num_dropped:
            words.append(f"{self.num_dropped} dropped ({', '.join(self._faults)})")
        say(f"{', '.join(words)}; ship them with: rankd sync {self._shown}")
