"""What the daemon does with a history that can be opened and not be read: it goes aside, and the daemon goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import damage
import pytest
from damage import Damage

from rankd.archive import Archive
from rankd.config import HistoryConfig, Limits
from rankd.current import Current
from rankd.history import History
from rankd.records import Alert, Measurement
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.schema import FILE_NAME
from rankd.store.writer import Writer
from rankd_client.wire import Event, encode_event

TIMEOUT_SECONDS = 30.0
UNKNOWN = "0" * 16


def measured(step: int, layer: str = "w") -> Measurement:
    about = {"source_dtype": "bf16", "time": 12.5, "extra": {"loss": 0.5}}
    return Measurement("run-1", layer, step, (20, 30), True, False, {"stable_rank": 1.5}, **about)


def alert(alert_id: str, state: Any = "firing") -> Alert:
    return Alert(alert_id, "run-1", "w", 1, "warning", state, "rule", None, None, None, "fell", "look", time=12.5)


class Going:
    """A daemon's history over `data`, with what it tells."""

    def __init__(self, data: Path) -> None:
        self.faults: asyncio.Queue[StoreError | None] = asyncio.Queue()
        self.unread: list[str] = []
        loop = asyncio.get_running_loop()
        self.history = History(data, HistoryConfig(), Counter(), dict, self.unread.append)
        self.current = Current(self.history.streams, Limits(), Counter())
        self.history.begin(
            self.current,
            lambda entries: None,
            lambda error: loop.call_soon_threadsafe(self.faults.put_nowait, error) and None,
        )

    async def hear(self) -> StoreError | None:
        return await asyncio.wait_for(self.faults.get(), TIMEOUT_SECONDS)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A history of ten measurements, an alert that is on and one that is over."""
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    for step in range(1, 11):
        writer.submit(Entry(step, measured(step)))
    for n, raised in enumerate([alert("old"), alert("old", "resolved"), alert("new")], 1):
        writer.submit(AlertEntry(n, raised))
    assert writer.flush(TIMEOUT_SECONDS) and writer.close(TIMEOUT_SECONDS)
    yield tmp_path


def asides(data: Path) -> list[str]:
    return sorted(path.name for path in data.glob(f"{FILE_NAME}.damaged-*") if path.suffix[-4:] not in ("-wal", "-shm"))


AT_START = {
    "a page of the alerts": damage.page_of("alert"),
    "a page of the streams": damage.page_of("stream"),
    "no JSON": damage.text(b'"alert_id":"new"', b'"alert_id" "new"'),
    "another key": damage.text(b'"alert_id":"new"', b'"alert_ie":"new"'),
    "another run": damage.text(b'"run":"run-1"', b'"run":"run-2"'),
    "no UTF-8": damage.text(b'"rule":"rule"', b'"rule":"r\xff\xfee"'),
    "no UTF-8 in a name": damage.text(b"run-1", b"run-\xff"),
    "another table": damage.text(b"CREATE TABLE alert", b"CREATE TABLE alart"),
}


@pytest.mark.parametrize("case", AT_START)
async def test_damage_that_only_who_reads_can_see_is_put_aside_at_the_start(data: Path, case: str) -> None:
    AT_START[case](data)
    going = Going(data)
    try:
        assert len(asides(data)) == 1 and going.history.moved_aside == data / asides(data)[0]
        assert going.current.firing("run-1") == [] and list(going.history.streams.topics()) == []
        assert going.history.writer is not None and going.history.streams.stream_id == going.history.writer.stream_id
        going.history.writer.submit(Entry(1, measured(1)))
        assert going.history.flush(TIMEOUT_SECONDS)
        assert await going.history.last_steps("run-1") == {("w", "weight"): 1}
        assert going.unread == [] and going.faults.empty()
    finally:
        going.history.close()


def resumed(archive: Archive) -> Any:
    return archive.events(("alert", "run-1"), (archive.streams() or [UNKNOWN])[0], 1, 9)


def recalled(archive: Archive) -> Any:
    return list(archive.recall("run-1", "w", "weight")[1])


WHILE_RUNNING: dict[str, tuple[Damage, Any]] = {
    "an alert that is over": (damage.text(b'"state":"resolved"', b'"state" "resolved"'), resumed),
    "an alert of another kind": (damage.text(b'"state":"resolved"', b'"stage":"resolved"'), resumed),
    "a page of the layers": (damage.page_of("layer"), lambda archive: archive.last_steps("run-1")),
    "no shape": (damage.text(b"[20, 30]", b"[20, 3]]"), recalled),
    "a shape of texts": (damage.text(b"[20, 30]", b'[2,"30"]'), recalled),
    "no further keys": (damage.text(b'{"loss":0.5}', b'{"loss";0.5}'), recalled),
    "further keys without names": (damage.text(b'{"loss":0.5}', b'["loss",0.5]'), recalled),
    "half a character": (damage.text(b'{"loss":0.5}', b'{"\\ud800":1}'), recalled),
    "no UTF-8": (damage.text(b"bf16", b"bf1\xff"), recalled),
}


@pytest.mark.parametrize("case", WHILE_RUNNING)
async def test_damage_that_who_reads_meets_later_is_put_aside_and_said(data: Path, case: str) -> None:
    spoil, question = WHILE_RUNNING[case]
    spoil(data)
    going = Going(data)
    try:
        assert going.history.moved_aside is None
        assert going.history.reading is not None and going.history.writer is not None
        with pytest.raises(StoreError, match=FILE_NAME) as caught:
            await going.history.reading.ask(question)
        assert caught.value.kind == "damaged"
        fault = await going.hear()
        assert fault is not None and fault.begun_anew and asides(data)[0] in str(fault)
        assert await going.hear() is None, "written again, with nothing done by anybody"
        going.history.look_anew()
        going.history.writer.submit(Entry(11, measured(11)))
        assert going.history.flush(TIMEOUT_SECONDS)
        assert await going.history.last_steps("run-1") == {("w", "weight"): 11}
        assert len(asides(data)) == 1 and len(going.unread) == 1
    finally:
        going.history.close()


async def test_a_file_begun_since_is_not_blamed_for_the_one_before(data: Path) -> None:
    going = Going(data)
    try:
        assert going.history.writer is not None
        archive = Archive(data)
        assert archive.last_steps("run-1") == {("w", "weight"): 10}
        error = StoreError("damaged", "as somebody says")
        error.looked_at = archive.looked_at
        going.history.writer.blame(error)
        assert (fault := await going.hear()) is not None and fault.begun_anew
        assert await going.hear() is None
        going.history.writer.blame(error)
        going.history.writer.submit(Entry(11, measured(11)))
        assert going.history.flush(TIMEOUT_SECONDS)
        assert len(asides(data)) == 1 and going.faults.empty()
        archive.close()
    finally:
        going.history.close()


@pytest.mark.parametrize("seed", range(40))
async def test_any_byte_may_be_another(data: Path, seed: int) -> None:
    """Whatever it is, asking raises nothing but StoreError, and what comes is written."""
    chance = random.Random(seed)
    content = bytearray((data / FILE_NAME).read_bytes())
    used = [at for at, byte in enumerate(content) if byte and not 18 <= at < 20 and not 60 <= at < 64]  # no version
    for _ in range(4):
        content[chance.choice(used)] = chance.randrange(256)
    (data / FILE_NAME).write_bytes(content)
    going = Going(data)
    try:
        assert going.history.reading is not None and going.history.writer is not None
        for question in (resumed, recalled, Archive.streams, lambda archive: archive.last_steps("run-1")):
            with contextlib.suppress(StoreError):
                for event in await going.history.reading.ask(question):
                    if isinstance(event, Event):
                        encode_event(event)
        going.history.writer.submit(Entry(1000, measured(1000)))
        going.history.writer.submit(AlertEntry(1000, alert("last")))
        assert going.history.flush(TIMEOUT_SECONDS)
    finally:
        going.history.close()


@pytest.mark.parametrize("counts", [None, 0], ids=["as it is written", "of a file from before"])
async def test_a_stream_that_began_after_rows_that_were_lost_is_no_damage(data: Path, counts: int | None) -> None:
    """Their file was removed, or they were given up for want of room: numbers go on behind them."""
    writer = Writer(data, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    bases = {("measurement", "run-1"): 12, ("measurement", "gone"): 5, ("alert", "gone"): 2}
    writer.switch_stream("e" * 16, bases)
    assert writer.flush(TIMEOUT_SECONDS) and writer.close(TIMEOUT_SECONDS)
    if counts is not None:
        with contextlib.closing(sqlite3.connect(data / FILE_NAME)) as connection, connection:
            connection.execute("UPDATE run SET num_measurements = min(num_measurements, 10), num_alerts = ?", (counts,))
    going = Going(data)
    assert going.history.moved_aside is None and asides(data) == []
    for topic, base in bases.items():
        assert going.history.streams.next_n(topic) == base + 1
    going.history.close()


async def test_rows_of_parts_are_no_layers_that_are_pushed(data: Path) -> None:
    """A layer of its own may have such a name: it is told by its step."""
    going = Going(data)
    assert going.history.writer is not None
    for n, (layer, step) in enumerate((("w:k", 11), ("w:v", 9), ("w", 11)), 11):
        going.history.writer.submit(Entry(n, replace(measured(step), layer=layer)))
    assert going.history.flush(TIMEOUT_SECONDS)
    assert await going.history.last_steps("run-1") == {("w", "weight"): 11, ("w:v", "weight"): 9}
    going.history.close()


async def test_a_layer_that_takes_long_to_recall_holds_up_no_run(data: Path) -> None:
    going = Going(data)
    goes_on = threading.Event()
    recalling = asyncio.create_task(going.history.recall(lambda archive: goes_on.wait(TIMEOUT_SECONDS)))
    assert await going.history.last_steps("run-1") == {("w", "weight"): 10}
    goes_on.set()
    assert await recalling
    going.history.close()


async def test_a_file_that_was_cut_off_beside_its_log_is_put_aside_not_lost(data: Path) -> None:
    writer = Writer(data, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    writer.submit(Entry(11, measured(11)))
    assert writer.flush(TIMEOUT_SECONDS)
    log = (data / f"{FILE_NAME}-wal").read_bytes()
    assert writer.close(TIMEOUT_SECONDS) and log
    (data / FILE_NAME).write_bytes(b"")
    (data / f"{FILE_NAME}-wal").write_bytes(log)
    going = Going(data)
    assert going.history.moved_aside is not None and len(asides(data)) == 1
    assert (data / f"{going.history.moved_aside.name}-wal").read_bytes() == log
    going.history.close()
