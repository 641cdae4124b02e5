"""Asks the archive on a thread of its own: a disk that hangs in a read holds up nobody who does not need the answer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from rankd.archive import Archive
from rankd.store.errors import StoreError

log = logging.getLogger("rankd.reading")
T = TypeVar("T")

Question = tuple[Callable[[Archive], Any], "Future[Any]"]

PATIENCE_SECONDS = 2.0
"""Without progress, where an answer takes milliseconds. From then on the disk counts as hanging until it answers."""


class Reading:
    """Questions are answered one by one, in order. Where the history cannot be read just now, or not in time, they
    raise StoreError, which is counted as `num_unread` and told to `on_unread`. `on_damaged` is told as well where the
    file is damaged: nobody else may notice."""

    def __init__(
        self,
        archive: Archive,
        counters: Counter[str],
        on_unread: Callable[[str], None],
        on_damaged: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        self._archive = archive
        self._counters = counters
        self._on_unread, self._on_damaged = on_unread, on_damaged
        self._questions: SimpleQueue[Question | None] = SimpleQueue()
        self._hangs_at: int | None = None  # with this progress
        # A daemon thread: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._answer, name="archive", daemon=True)
        self._thread.start()

    def ask_and_wait(self, question: Callable[[Archive], T]) -> T:
        """For the start, where nothing else goes on. Raises StoreError."""
        return self._put(question).result()

    async def ask(self, question: Callable[[Archive], T]) -> T:
        """`question` of the archive. Raises StoreError."""
        try:
            if self._hangs_at == self._archive.progress:
                raise StoreError("slow", "the disk has not answered yet")
            return await self._wait_for(asyncio.wrap_future(self._put(question)))
        except StoreError as error:
            self._counters["num_unread"] += 1
            if self._counters["num_unread"] in (1, 100, 10_000):
                log.error("the history cannot be read: %s", error)
            self._on_unread(str(error))
            if error.kind == "damaged":
                self._on_damaged(error)
            raise

    def look_anew(self) -> None:
        """Let go of the file: another may have taken its place."""
        self._put(Archive.close)

    def close(self) -> None:
        """Lets go of the file, once what was asked is answered; waits for that only as long as for any answer."""
        self.look_anew()
        self._questions.put(None)
        self._thread.join(PATIENCE_SECONDS)

    async def _wait_for(self, answer: asyncio.Future[T]) -> T:
        while True:
            progress = self._archive.progress
            done, _ = await asyncio.wait([answer], timeout=PATIENCE_SECONDS)
            if done:
                return answer.result()
            if progress == self._archive.progress:
                self._hangs_at = progress
                answer.cancel()  # what nobody waits for any more is not read
                raise StoreError("slow", f"no answer within {PATIENCE_SECONDS:g} s")

    def _put(self, question: Callable[[Archive], T]) -> Future[T]:
        future: Future[T] = Future()
        self._questions.put((question, future))
        return future

    def _answer(self) -> None:
        while (asked := self._questions.get()) is not None:
            question, future = asked
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = question(self._archive)
            except BaseException as error:  # raised where it was asked
                if isinstance(error, StoreError):
                    error.looked_at = self._archive.looked_at  # by the time it is heard of, another may be looked at
                    self._archive.close()  # the next one looks at what is there by then
                future.set_exception(error)
            else:
                future.set_result(answer)
            self._archive.progress += 1
