"""What a sync had to leave out is told by every later one, though what came after it has gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from link_ends import PATIENCE_SECONDS, Router
from spooled import Spooled, chunk_of
from typer.testing import CliRunner

from rankd.cli import app
from rankd.sync import Shipment, Tally, find_lives
from rankd_client.spool.format import SpoolError
from rankd_client.wire import Ack, Chunk, Shard

UPPER, LOWER = Shard(rectangles=((0, 2, 0, 4),)), Shard(rectangles=((2, 4, 0, 4),))


def sync(spool: Path) -> tuple[list[Tally], list[str]]:
    """What became of each session, and what was told, with a daemon that records whatever comes."""
    router = Router(f"ipc://{spool}.sock")
    told: list[str] = []
    ((life,), _) = find_lives(spool)
    shipment = Shipment(life, f"ipc://{spool}.sock", None, PATIENCE_SECONDS, told.append)
    thread = threading.Thread(target=shipment.run)
    thread.start()
    try:
        is_in = False
        while thread.is_alive():
            if router.silent(0.02):
                continue
            if not is_in:
                is_in = bool(router.welcome())
            elif isinstance(chunk := router.receive(), Chunk):
                received = Ack("received", chunk.layer, chunk.step, credit_bytes=len(chunk.payload))
                router.send(received, Ack("recorded", chunk.layer, chunk.step))
    finally:
        thread.join(PATIENCE_SECONDS)
        router.close()
    return shipment.tallies, told


def counts(tallies: list[Tally]) -> list[tuple[int, int, int, int]]:
    """(shipped, before, damaged, incomplete) of each session."""
    return [(tally.num_shipped, tally.num_before, tally.num_damaged, tally.num_incomplete) for tally in tallies]


def spooled(spool: Path, steps: int = 5) -> Path:
    """A session of one layer, each step's bytes its number."""
    writer = Spooled(spool)
    for step in range(1, steps + 1):
        writer.keep(chunk_of("a", step), bytes([step] * 64))
    writer.close()
    return writer.path


def swap(session: Path, step: int, old: int, new: int) -> Path:
    """Give the body of `step` other bytes; in which file it is."""
    for path in session.glob("*.spool"):
        content = path.read_bytes()
        if bytes([old] * 64) in content:
            path.write_bytes(content.replace(bytes([old] * 64), bytes([new] * 64), 1))
            return path
    raise AssertionError(step)


def test_a_damaged_snapshot_is_told_by_every_sync(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    path = swap(spooled(spool), 2, 2, 99)
    tallies, first = sync(spool)
    assert counts(tallies) == [(4, 0, 1, 0)] and not tallies[0].is_over
    (fault,) = first
    done = (spool / bytes(16).hex() / "done").read_bytes()
    for _ in range(2):
        tallies, again = sync(spool)
        assert counts(tallies) == [(0, 4, 1, 0)] and not tallies[0].is_over
        where = fault.removesuffix(": a snapshot's checksum is wrong")
        assert str(path) in where and again == [
            f"{where}: an earlier sync found it damaged, or a part that belongs to it"
        ]
    assert (spool / bytes(16).hex() / "done").read_bytes() == done


def test_the_command_says_so_and_keeps_it(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    session = spooled(spool)
    path = swap(session, 2, 2, 99)
    sync(spool)
    for option in ((), ("--delete",)):  # nothing is left to ship: no daemon is asked for
        found = CliRunner().invoke(app, ["sync", str(spool), "--url", f"ipc://{tmp_path}/nobody", *option])
        assert found.exit_code == 1
        assert "0 snapshots shipped, 4 shipped before, 1 damaged\n" in found.stderr and str(path) in found.stderr
        assert session.exists() and not (session / "shipped").exists()


def test_what_is_whole_again_before_later_steps_went_is_shipped(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    session = spooled(spool)
    swap(session, 5, 5, 99)
    assert counts(sync(spool)[0]) == [(4, 0, 1, 0)]
    assert counts(sync(spool)[0]) == [(0, 4, 1, 0)]
    swap(session, 5, 99, 5)
    assert counts(sync(spool)[0]) == [(1, 4, 0, 0)]
    tallies, told = sync(spool)
    assert counts(tallies) == [(0, 5, 0, 0)] and told == [] and tallies[0].is_over


def test_what_is_no_longer_there_is_not_told(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    path = swap(spooled(spool), 2, 2, 99)
    assert counts(sync(spool)[0]) == [(4, 0, 1, 0)]
    path.unlink()
    tallies, told = sync(spool)
    assert tallies[0].num_damaged == 0 and told == [] and tallies[0].is_over


def test_a_step_of_which_a_part_is_missing_is_told_by_every_sync(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for rank, (shard, steps) in enumerate(((UPPER, (1, 2, 3)), (LOWER, (1, 3)))):
        writer = Spooled(spool, session=bytes([rank] * 16), process_rank=rank, world_size=2)
        for step in steps:
            writer.keep(chunk_of("a", step, shard=shard))
        writer.close()
    assert counts(sync(spool)[0]) == [(2, 0, 0, 1), (2, 0, 0, 0)]
    for _ in range(2):
        tallies, told = sync(spool)
        assert counts(tallies) == [(0, 2, 0, 1), (0, 2, 0, 0)] and told == []
        assert [tally.is_over for tally in tallies] == [False, True]


def test_a_part_that_is_damaged_takes_the_others_with_it(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for rank, shard in enumerate((UPPER, LOWER)):
        writer = Spooled(spool, session=bytes([rank] * 16), process_rank=rank, world_size=2)
        for step in (1, 2):
            writer.keep(chunk_of("a", step, shard=shard), bytes([10 * rank + step] * 32))
        writer.close()
    path = spool / bytes(16).hex() / "00.spool"
    path.write_bytes(path.read_bytes().replace(bytes([1] * 32), bytes([99] * 32)))
    assert counts(sync(spool)[0]) == [(1, 0, 1, 0), (1, 0, 1, 0)]
    tallies, told = sync(spool)
    assert counts(tallies) == [(0, 1, 1, 0), (0, 1, 1, 0)] and len(told) == 2


@pytest.mark.parametrize("number", [1 << 62, (1 << 64) - 1])
def test_a_number_that_could_be_taken_for_a_mark_is_refused(tmp_path: Path, number: int) -> None:
    writer = Spooled(tmp_path / "spool")
    writer.session._next_number = number
    writer.keep(chunk_of("a", 1))
    writer.close()
    tallies, told = sync(tmp_path / "spool")
    path = writer.path / "00.spool"
    assert counts(tallies) == [(0, 0, 1, 0)]
    assert told == [str(SpoolError(path, f"number {number}: expected less than 2^62", 32))]
