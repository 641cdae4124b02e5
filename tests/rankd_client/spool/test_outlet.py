"""A client whose outlet is a spool: what training feels of it, and of a disk that hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from absent_daemon import model_of
from spooled import records_of

from rankd_client import Client
from rankd_client.spool.format import Log
from rankd_client.spool.session import Session

PATIENCE_SECONDS = 30.0


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "WORLD_SIZE", "RANKD_RUN", "RANKD_EVERY_STEPS", "RANKD_SPOOL_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANKD_MODE", "offline")
    monkeypatch.setenv("RANKD_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def client(spool: Path) -> Iterator[Client]:
    client = Client("lm", max_overhead=None, strict=True)
    yield client
    client.close()


def session_of(spool: Path) -> Path:
    (session,) = spool.glob("*/")
    return session


def test_what_was_pushed_is_there_byte_for_byte(client: Client, spool: Path) -> None:
    weight = torch.randn(32, 16)
    client.push({"w": weight}, step=7)
    assert client.flush(PATIENCE_SECONDS)
    ((_, chunk, body),) = records_of(session_of(spool))
    assert (chunk.layer, chunk.step, chunk.shape, chunk.dtype, chunk.source_dtype) == (
        *("w", 7, (32, 16), "bfloat16", "float32"),
    )
    assert torch.equal(torch.frombuffer(bytearray(body), dtype=torch.bfloat16).reshape(32, 16), weight.bfloat16())


def test_returns_are_written_as_they_were_pushed_though_the_disk_was_slow(
    client: Client, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, hangs, keep = threading.Event(), threading.Event(), Session.keep

    def slow(session: Session, *arguments: Any) -> bool:
        hangs.set()
        assert goes_on.wait(PATIENCE_SECONDS)
        return keep(session, *arguments)

    monkeypatch.setattr(Session, "keep", slow)
    weight = torch.randn(8, 8)
    client.push({"w": weight}, step=10)
    assert hangs.wait(PATIENCE_SECONDS)
    for step in (20, 30, 20):  # of which the disk sees the last
        client.push({"w": weight}, step=step)
        client.push_measurements({"v": {"stable_rank": 2.0}}, step=step)
    goes_on.set()
    assert client.flush(PATIENCE_SECONDS)
    found = []
    for path in session_of(spool).glob("*.spool"):
        log = Log(path, bytes.fromhex(path.parent.name))
        found += [(log.message(record).layer, log.message(record).step, record.num_returns) for record in log.records()]
        log.close()
    assert sorted(found) == [("v", 20, 0), ("v", 20, 1), ("v", 30, 0), ("w", 10, 0), ("w", 20, 1)]


def test_large_snapshots_are_more_than_one_write(client: Client, spool: Path) -> None:
    weight = torch.randn(3000, 3000)
    client.push({"w": weight})
    assert client.flush(PATIENCE_SECONDS)
    ((_, _, body),) = records_of(session_of(spool))
    assert bytes(body) == weight.bfloat16().view(torch.uint8).numpy().tobytes()


def test_nothing_is_touched_before_the_first_push_that_is_due(client: Client, spool: Path) -> None:
    client.push({})
    assert not spool.exists() and not any(thread.name == "rankd-spool" for thread in threading.enumerate())


def test_a_spool_that_cannot_be_written_is_told_of_once(
    client: Client, spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spool.touch()
    for step in range(5):
        client.push(model_of(), step=step)
        assert client.flush(PATIENCE_SECONDS)
    client.close()
    told = capfd.readouterr().err
    assert told.count("what cannot be written is dropped, training goes on") == 1
    assert "20 dropped (" in told and "0 snapshots of lm" in told and client.num_errors == 0


def test_a_disk_that_hangs_holds_up_nobody(
    client: Client, spool: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    write = os.pwrite

    def pwrite(*arguments: object) -> int:
        hangs.set()
        goes_on.wait(PATIENCE_SECONDS)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", pwrite)
    client.push(model_of(), step=0)
    assert hangs.wait(PATIENCE_SECONDS)
    receipts = [client.push(model_of(), step=step) for step in range(1, 20)]
    assert sum(receipt.num_replaced for receipt in receipts) == 19 * 4 - 1
    assert not client.flush(0.01)
    thread = next(thread for thread in threading.enumerate() if thread.name == "rankd-spool")
    client.close(0.0)
    assert "does not answer: 5 snapshots are not written" in capfd.readouterr().err
    goes_on.set()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_each_client_has_a_session_of_its_own_and_the_plan_is_its_own(client: Client, spool: Path) -> None:
    with Client("lm", max_overhead=None, strict=True, every_steps=10) as other:
        for step in range(25):
            other.push(model_of(), step=step)
            client.push(model_of(), step=step)
            assert other.flush(PATIENCE_SECONDS) and client.flush(PATIENCE_SECONDS)
    kept = [{chunk.step for _, chunk, _ in records_of(session)} for session in spool.glob("*/")]
    assert sorted(kept, key=len) == [{0, 10, 20}, set(range(25))]
    assert client.alerts() == [] and not client.connected
