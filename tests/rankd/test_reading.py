import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rankd.archive import Archive
from rankd.config import HistoryConfig
from rankd.reading import PATIENCE_SECONDS, Reading
from rankd.records import Measurement
from rankd.store.entries import Entry
from rankd.store.errors import StoreError
from rankd.store.writer import Writer


class Asked:
    """A reader's thread over `data`, with what it counts and tells."""

    def __init__(self, data: Path) -> None:
        self.counters: Counter[str] = Counter()
        self.told: list[str] = []
        self.reading = Reading(Archive(data), self.counters, self.told.append)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    writer.submit(Entry(1, Measurement("r", "w", 7, (2, 3), True, False, {})))
    assert writer.flush(30) and writer.close(30)
    made = Asked(tmp_path)
    yield made
    made.reading.close()


def last_steps(archive: Archive) -> dict[tuple[str, str], int]:
    return archive.last_steps("r")


async def test_questions_are_answered_in_order_on_one_other_thread(asked: Asked) -> None:
    order: list[int] = []

    def note(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    idents = await asyncio.gather(*(asked.reading.ask(lambda archive, n=n: note(n)) for n in range(20)))
    assert order == list(range(20)) and len(set(idents)) == 1 and idents[0] != threading.get_ident()
    assert await asked.reading.ask(last_steps) == {("w", "weight"): 7}
    assert asked.reading.ask_and_wait(last_steps) == {("w", "weight"): 7}


class Patience:
    """Runs out by hand: each time that it is waited for an answer, and none is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_run_out = 0
        self.on_run_out: Callable[[], object] = lambda: None
        self.endless = False
        self._wait = asyncio.wait
        monkeypatch.setattr(asyncio, "wait", self.wait)

    async def wait(self, answers: list[asyncio.Future[Any]], timeout: float) -> Any:
        assert timeout == PATIENCE_SECONDS
        if self.endless:
            return await self._wait(answers)
        await asyncio.sleep(0)
        self.num_run_out += 1
        self.on_run_out()
        return set(), set(answers)


async def test_a_disk_that_hangs_holds_up_who_asked_and_then_nobody(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(monkeypatch)
    begun, answers, over = threading.Event(), threading.Event(), threading.Event()
    num_asked = 0

    def hang(archive: Archive) -> None:
        begun.set()
        answers.wait(30)

    def ask(archive: Archive) -> None:
        nonlocal num_asked
        num_asked += 1

    patience.on_run_out = lambda: begun.wait(30)
    with pytest.raises(StoreError, match=r"no answer within 2 s"):
        await asked.reading.ask(hang)
    with pytest.raises(StoreError, match="the disk has not answered yet"):
        await asked.reading.ask(ask)
    assert asked.counters["num_unread"] == 2 and len(asked.told) == 2 and patience.num_run_out == 1
    answers.set()
    asked.reading.ask_and_wait(lambda archive: over.set())  # behind it: it has answered
    patience.endless = True
    await asked.reading.ask(ask)
    assert num_asked == 1, "what nobody waits for any more is not read"


async def test_a_long_answer_is_none_that_hangs(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the detectors of a layer are fed everything that was ever recorded of it."""
    patience = Patience(monkeypatch)
    turn, done = threading.Semaphore(0), threading.Semaphore(0)

    def work(archive: Archive) -> str:
        for _ in range(3):
            turn.acquire(timeout=30)
            archive.streams()
            done.release()
        turn.acquire(timeout=30)
        return "all of it"

    def go_on() -> None:
        turn.release()
        done.acquire(timeout=30)
        if patience.num_run_out == 3:
            patience.endless = True
            turn.release()

    patience.on_run_out = go_on
    assert await asked.reading.ask(work) == "all of it"
    assert patience.num_run_out == 3 and not asked.told


@pytest.mark.parametrize("whole", [True, False])
def test_each_row_that_is_fed_is_progress(asked: Asked, tmp_path: Path, whole: bool) -> None:
    archive = Archive(tmp_path)
    _, rows = archive.recall("r", "w", "weight", whole=whole)
    before = archive.progress
    assert len(list(rows)) == 1 and archive.progress == before + 1
    archive.close()


async def test_an_error_tells_when_it_was_looked_which_file_is_there(asked: Asked) -> None:
    """Not when it is heard of: by then another file may have been looked at, which is none the worse."""
    seen: list[float] = []

    def damaged(archive: Archive) -> None:
        archive.streams()
        seen.append(archive.looked_at)
        raise StoreError("damaged", "as somebody says")

    def look(archive: Archive) -> float:
        archive.streams()
        return archive.looked_at

    error, later = await asyncio.gather(asked.reading.ask(damaged), asked.reading.ask(look), return_exceptions=True)
    assert isinstance(error, StoreError) and [error.looked_at] == seen and isinstance(later, float) and later > seen[0]


async def test_after_a_fault_the_next_one_looks_at_what_is_there_by_then(asked: Asked, tmp_path: Path) -> None:
    file, aside = tmp_path / "history.db", tmp_path / "aside"
    file.rename(aside)
    with pytest.raises(StoreError, match="no history in"):
        await asked.reading.ask(last_steps)
    with pytest.raises(StoreError, match="no history in"):
        asked.reading.ask_and_wait(last_steps)
    aside.rename(file)
    assert await asked.reading.ask(last_steps) == {("w", "weight"): 7}
    asked.reading.look_anew()
    assert await asked.reading.ask(last_steps) == {("w", "weight"): 7}
    assert asked.counters["num_unread"] == 1


async def test_a_mistake_of_ours_is_raised_where_it_was_asked(asked: Asked) -> None:
    with pytest.raises(ZeroDivisionError):
        await asked.reading.ask(lambda archive: 1 // 0)
    assert await asked.reading.ask(last_steps) == {("w", "weight"): 7}
