import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankd import reading
from rankd.archive import Archive
from rankd.config import HistoryConfig
from rankd.reading import Reading
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


async def test_a_disk_that_hangs_holds_up_who_asked_and_then_nobody(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.05)
    answers = threading.Event()
    num_asked = 0

    def ask(archive: Archive) -> None:
        nonlocal num_asked
        num_asked += 1

    def hang(archive: Archive) -> None:
        answers.wait(30)

    with pytest.raises(StoreError, match=r"no answer within 0\.05 s"):
        await asked.reading.ask(hang)
    with pytest.raises(StoreError, match="the disk has not answered yet"):
        await asked.reading.ask(ask)
    assert asked.counters["num_unread"] == 2 and len(asked.told) == 2
    answers.set()
    async with asyncio.timeout(30):
        while True:
            try:
                await asked.reading.ask(ask)
                break
            except StoreError:
                await asyncio.sleep(0)
    assert num_asked == 1, "what nobody waits for any more is not read"


async def test_a_long_answer_is_none_that_hangs(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the detectors of a layer are fed everything that was ever recorded of it, and others wait for it."""
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.1)
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    for n in range(2, 31):
        writer.submit(Entry(n, Measurement("r", "w", n, (2, 3), True, False, {})))
    assert writer.flush(30) and writer.close(30)
    pause = threading.Event()

    def feed(archive: Archive, whole: bool) -> int:
        _, rows = archive.recall("r", "w", "weight", whole=whole)
        return sum(not pause.wait(0.01) for _ in rows)

    for whole in (True, False):
        answers = [asked.reading.ask(lambda archive, whole=whole: feed(archive, whole)) for _ in range(3)]
        assert await asyncio.gather(*answers) == [30] * 3
    assert not asked.told


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
