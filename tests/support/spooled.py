"""Spools, written by what trainers write them with."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rankd_client.spool.format import Log, Record
from rankd_client.spool.session import Session
from rankd_client.wire import DTYPES, Chunk, Hello, Shard, encode

WHOLE = Shard()
PLENTY = 1 << 30


def chunk_of(
    layer: str, step: int, shape: tuple[int, ...] = (4, 4), shard: Shard = WHOLE, dtype: str = "float32"
) -> Chunk:
    """The first chunk of a snapshot, without its bytes."""
    total_bytes = DTYPES[dtype].num_bytes(shard.num_elements(shape), shape)
    return Chunk(layer, step, dtype, shape, total_bytes, 0, b"", shard=shard)


class Spooled:
    """One session's writer."""

    def __init__(
        self,
        root: Path,
        run: str = "r",
        session: bytes = bytes(16),
        max_bytes: int = PLENTY,
        process_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.hello = Hello(run, session, agent="test", process_rank=process_rank, world_size=world_size)
        self.session = Session(root, max_bytes, self.hello)
        self.path = self.session.path

    def keep(self, chunk: Chunk, body: bytes | None = None, num_returns: int | None = None) -> bool:
        body = bytes(chunk.total_bytes) if body is None else body
        assert len(body) == chunk.total_bytes
        key = (chunk.layer, chunk.role)
        return self.session.keep(key, chunk.step, bytes(encode(chunk)[0]), body, lambda: None, num_returns)

    def close(self) -> None:
        self.session.close()


def records_of(session: Path) -> list[tuple[int, Chunk, bytes]]:
    """(number, first chunk, body) of all that are whole, in the order in which they were written."""
    found = []
    for path in session.glob("*.spool"):
        log = Log(path, bytes.fromhex(session.name))
        for record in log.records():
            found.append(_read(log, record))
        log.close()
    return sorted(found, key=lambda row: row[0])


def _read(log: Log, record: Record) -> tuple[int, Chunk, bytes]:
    message = log.message(record)
    assert isinstance(message, Chunk)
    return record.number, message, bytes(log.body(record))


def bytes_in(root: Path) -> int:
    """In sessions, while they are written: one that is being made has another name yet, and takes it at any moment, and
    a file may be thinned out as soon as it was seen."""
    num_bytes = 0
    for session in [path for path in root.glob("*") if not path.suffix]:
        for file in session.glob("*.spool"):
            with contextlib.suppress(FileNotFoundError):
                num_bytes += file.stat().st_size
    return num_bytes
