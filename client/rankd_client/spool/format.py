"""The files of a spool: bytes ↔ records, pure but for reading from a descriptor.

    DIR/SESSION/head         who wrote this session: preamble, time, hello
    DIR/SESSION/NN.spool     its snapshots of thinning class NN (see thinning): preamble, records, each behind the other
    DIR/SESSION/done         written by `rankd sync`: what was dealt with

A record is a head of 40 bytes (of 36 without the number of returns, as they were first), the header of a message of
the push connection, and its body: all bytes of a shard. What is there is read like what comes over a network: caps
first, then checksums, then the codec. Integers are little-endian.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankd_client.wire import LOCAL_VERSION, MIN_CHUNK_BYTES, Chunk, Hello, Reported, WireError, decode, encode
from rankd_client.wire.limits import MAX_HEADER_BYTES, MAX_REPORT_BYTES

MAGIC = b"rankd-spool\0"
VERSION = 1
SUFFIX = ".spool"
MAX_CLASS = 63

_PREAMBLE = struct.Struct("<12sHH16s")
_HEAD = struct.Struct("<dII")
_RECORD = struct.Struct("<4sIQQII")
_RETURNS = struct.Struct("<I")
_CRC = struct.Struct("<I")
RECORD_MAGIC, RETURNS_MAGIC = b"snap", b"snpr"
PREAMBLE_BYTES = _PREAMBLE.size
RECORD_BYTES = _RECORD.size + _CRC.size
"""Of the shorter head."""

_HEAD_CLASS = 0xFFFF
"""In the place of a thinning class, in the preamble of `head`."""

_ANY_PAYLOAD = memoryview(bytes(MIN_CHUNK_BYTES))
"""Stands for the first chunk of a body that is not read yet."""

Message = Chunk | Reported


class SpoolError(ValueError):
    """A file of a spool that cannot be used; the message names it, the offset where there is one, and what is wrong."""

    def __init__(self, path: Path, why: str, at: int | None = None) -> None:
        where = "" if at is None else f", offset {at}"
        super().__init__(f"{str(path)!r}{where}: {why}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a session, and since when, in seconds since 1970 by the writer's clock."""

    hello: Hello
    started: float


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record lies in its file, and what its head says. `number` counts up in a session, over all of its
    files. `num_returns`: how often its layer had gone back to a step before; None where that was not written."""

    at: int
    number: int
    header: bytes
    body_bytes: int
    body_crc: int
    num_returns: int | None = None

    @property
    def body_at(self) -> int:
        head_bytes = RECORD_BYTES + (0 if self.num_returns is None else _RETURNS.size)
        return self.at + head_bytes + len(self.header)

    @property
    def end(self) -> int:
        return self.body_at + self.body_bytes


def pack_preamble(session: bytes, thinning_class: int) -> bytes:
    return _PREAMBLE.pack(MAGIC, VERSION, thinning_class, session)


def pack_origin(origin: Origin) -> bytes:
    """The content of `head`."""
    hello = bytes(encode(origin.hello)[0])
    crc = zlib.crc32(hello, zlib.crc32(struct.pack("<d", origin.started)))
    head = _HEAD.pack(origin.started, len(hello), crc)
    return pack_preamble(origin.hello.session, _HEAD_CLASS) + head + hello


def pack_record(
    number: int, header: bytes, body: bytes | bytearray | memoryview, num_returns: int | None = None
) -> bytes:
    """What stands in front of `body`."""
    magic = RECORD_MAGIC if num_returns is None else RETURNS_MAGIC
    head = _RECORD.pack(magic, len(header), len(body), number, zlib.crc32(header), zlib.crc32(body))
    head += b"" if num_returns is None else _RETURNS.pack(num_returns)
    return head + _CRC.pack(zlib.crc32(head)) + header


def read_origin(path: Path) -> Origin:
    """What `head` says. Raises SpoolError."""
    with _Open(path) as fd:
        content = os.pread(fd, PREAMBLE_BYTES + _HEAD.size + MAX_HEADER_BYTES + 1, 0)
    session = _check_preamble(path, content, _HEAD_CLASS)
    fields = content[PREAMBLE_BYTES : PREAMBLE_BYTES + _HEAD.size]
    if len(fields) < _HEAD.size:
        raise SpoolError(path, "it ends too early", len(content))
    started, num_bytes, crc = _HEAD.unpack(fields)
    hello = content[PREAMBLE_BYTES + _HEAD.size :]
    if len(hello) != num_bytes or zlib.crc32(hello, zlib.crc32(fields[:8])) != crc:
        raise SpoolError(path, "its checksum is wrong", PREAMBLE_BYTES)
    try:
        message = decode([hello], LOCAL_VERSION)
    except WireError as error:
        raise SpoolError(path, str(error), PREAMBLE_BYTES) from None
    if not isinstance(message, Hello) or message.session != session or not abs(started) < 1e12:
        raise SpoolError(path, "it is of no session", PREAMBLE_BYTES)
    return Origin(message, started)


class Log:
    """One open NN.spool file. `torn_bytes`: of a record at its end that was cut off, or is being written."""

    def __init__(self, path: Path, session: bytes) -> None:
        """Raises SpoolError where it is none of this session, OSError where it cannot be read."""
        self.path = path
        self.torn_bytes = 0
        self._file = _Open(path)
        try:
            preamble = os.pread(self.fd, PREAMBLE_BYTES, 0)
            self.empty = len(preamble) < PREAMBLE_BYTES  # cut off, or begun just now
            if not self.empty and _check_preamble(path, preamble, int(path.stem)) != session:
                raise SpoolError(path, "it is of another session", 0)
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        return self._file.fd

    def records(self) -> Iterator[Record]:
        """All that are whole by their length, in order. Raises SpoolError at the first whose head is damaged: nothing
        says where the next one begins."""
        size = os.fstat(self.fd).st_size
        at = size if self.empty else PREAMBLE_BYTES
        while at < size:
            record = self.record(at) if size - at >= RECORD_BYTES else None
            if record is None or record.end > size:
                self.torn_bytes = size - at
                return
            yield record
            at = record.end

    def record(self, at: int) -> Record | None:
        """The one that begins there; None where the file ends within its head. Raises SpoolError."""
        content = os.pread(self.fd, RECORD_BYTES + 512, at)  # most headers are shorter, and come along
        if len(content) < RECORD_BYTES:
            return None
        magic, header_bytes, body_bytes, number, header_crc, body_crc = _RECORD.unpack_from(content)
        num_returns, crc_at = None, _RECORD.size
        if magic == RETURNS_MAGIC:
            if len(content) < RECORD_BYTES + _RETURNS.size:
                return None
            (num_returns,) = _RETURNS.unpack_from(content, crc_at)
            crc_at += _RETURNS.size
        (crc,) = _CRC.unpack_from(content, crc_at)
        is_known = magic in (RECORD_MAGIC, RETURNS_MAGIC)
        if not is_known or header_bytes > MAX_HEADER_BYTES or zlib.crc32(content[:crc_at]) != crc:
            raise SpoolError(self.path, "expected a record; it is damaged from here on", at)
        head_bytes = crc_at + _CRC.size
        header = content[head_bytes : head_bytes + header_bytes]
        if len(header) < header_bytes:
            header = os.pread(self.fd, header_bytes, at + head_bytes)
        if len(header) < header_bytes:
            return None
        if zlib.crc32(header) != header_crc:
            raise SpoolError(self.path, "a record's checksum is wrong; it is damaged from here on", at)
        return Record(at, number, header, body_bytes, body_crc, num_returns)

    def message(self, record: Record) -> Message:
        """What a record holds: numbers whole; a snapshot as its first chunk, with zeros for its payload. Reads no more
        than a header or a report. Raises SpoolError."""
        first = _ANY_PAYLOAD[: min(record.body_bytes, MIN_CHUNK_BYTES)]
        try:
            if record.body_bytes <= MAX_REPORT_BYTES and b"measurement" in record.header:
                first = memoryview(self.body(record))
            message = decode([record.header, first], LOCAL_VERSION)
        except WireError as error:
            raise SpoolError(self.path, str(error), record.at) from None
        if isinstance(message, Reported):
            return message
        if not isinstance(message, Chunk) or message.offset or message.total_bytes != record.body_bytes:
            raise SpoolError(self.path, "a record that is no snapshot", record.at)
        return message

    def body(self, record: Record) -> bytearray:
        """Its bytes, checked. The caller has capped their number. Raises SpoolError."""
        body = bytearray(record.body_bytes)
        view, done = memoryview(body), 0
        while done < len(body):
            num_bytes = os.preadv(self.fd, [view[done:]], record.body_at + done)
            if not num_bytes:
                raise SpoolError(self.path, "it ends within a record", record.at)
            done += num_bytes
        if zlib.crc32(body) != record.body_crc:
            raise SpoolError(self.path, "a snapshot's checksum is wrong", record.at)
        return body

    def close(self) -> None:
        self._file.close()


class _Open:
    """A regular file, open for reading; a FIFO or a link put in its place holds nobody up. Raises SpoolError."""

    def __init__(self, path: Path) -> None:
        import stat

        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise SpoolError(path, f"cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            self.close()
            raise SpoolError(path, "expected a regular file")

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *error: object) -> None:
        self.close()


def _check_preamble(path: Path, content: bytes, thinning_class: int) -> bytes:
    """The session. Raises SpoolError."""
    if len(content) < PREAMBLE_BYTES:
        raise SpoolError(path, "it ends too early", len(content))
    magic, version, found, session = _PREAMBLE.unpack_from(content)
    if magic != MAGIC:
        raise SpoolError(path, "expected a file of a rankd spool", 0)
    if version != VERSION:
        raise SpoolError(path, f"version {version}; this rankd reads {VERSION}", 12)
    if found != thinning_class:
        raise SpoolError(path, "it has the name of another", 14)
    return bytes(session)
