"""The bytes of a spool's files: good ones as they are, and any others at all refused by file and offset."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spooled import Spooled, chunk_of, records_of

from rankd_client.spool.format import (
    PREAMBLE_BYTES,
    RECORD_BYTES,
    Log,
    Origin,
    SpoolError,
    pack_origin,
    pack_preamble,
    pack_record,
    read_origin,
)
from rankd_client.wire import Chunk, Hello, Reported, encode

SESSION = bytes(range(16))
ORIGIN = Origin(Hello("lm-42", SESSION, process_rank=1, world_size=2), 1.5)


def test_the_preamble_in_bytes() -> None:
    assert pack_preamble(SESSION, 7) == b"rankd-spool\0" + b"\x01\x00" + b"\x07\x00" + SESSION


def test_a_record_in_bytes() -> None:
    head = b"snap" + b"\x06\0\0\0" + b"\x04\0\0\0\0\0\0\0" + b"\x03\0\0\0\0\0\0\0"
    head += zlib.crc32(b"header").to_bytes(4, "little") + b"\xa3\xe0\xe3\x9b"
    head += zlib.crc32(head).to_bytes(4, "little")
    assert pack_record(3, b"header", b"1234") == head + b"header"
    assert len(head) == RECORD_BYTES == 36


def test_a_record_that_says_how_often_its_layer_went_back_in_bytes() -> None:
    head = b"snpr" + b"\x06\0\0\0" + b"\x04\0\0\0\0\0\0\0" + b"\x03\0\0\0\0\0\0\0"
    head += zlib.crc32(b"header").to_bytes(4, "little") + b"\xa3\xe0\xe3\x9b" + b"\x02\0\0\0"
    head += zlib.crc32(head).to_bytes(4, "little")
    assert pack_record(3, b"header", b"1234", 2) == head + b"header"
    assert len(head) == 40


def test_a_head_in_bytes(tmp_path: Path) -> None:
    hello = bytes(encode(ORIGIN.hello)[0])
    started = bytes.fromhex("000000000000f83f")
    crc = zlib.crc32(started + hello).to_bytes(4, "little")
    content = b"rankd-spool\0\x01\0\xff\xff" + SESSION + started + len(hello).to_bytes(4, "little") + crc + hello
    assert pack_origin(ORIGIN) == content
    (tmp_path / "head").write_bytes(content)
    assert read_origin(tmp_path / "head") == ORIGIN


def two_records(directory: Path) -> tuple[Path, bytes, list[int]]:
    """A file with two snapshots, one with its layer's returns; its content, and where records end."""
    writer = Spooled(directory, session=SESSION)
    writer.keep(chunk_of("a", 1), bytes(range(64)))
    writer.keep(chunk_of("b", 1), bytes(range(64, 128)), num_returns=7)
    writer.close()
    path = writer.path / "00.spool"
    log = Log(path, SESSION)
    records = list(log.records())
    assert [record.num_returns for record in records] == [None, 7]
    ends = [record.end for record in records]
    log.close()
    return path, path.read_bytes(), ends


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path, content, ends = two_records(tmp_path)
    assert ends[1] == len(content)
    assert [(number, chunk.layer, body) for number, chunk, body in records_of(path.parent)] == [
        (0, "a", bytes(range(64))),
        (1, "b", bytes(range(64, 128))),
    ]


def test_a_tail_torn_at_any_byte_is_left_out(tmp_path: Path) -> None:
    path, content, ends = two_records(tmp_path)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        log = Log(path, SESSION)
        whole = [record for record in log.records() if len(log.body(record)) == 64]
        assert len(whole) == sum(end <= size for end in ends)
        assert log.torn_bytes == size - max([PREAMBLE_BYTES, *(e for e in ends if e <= size)]) or size <= PREAMBLE_BYTES
        log.close()


def read_all(path: Path) -> list[Chunk | Reported]:
    log = Log(path, SESSION)
    try:
        messages = []
        for record in log.records():
            messages.append(log.message(record))
            log.body(record)
        return messages
    finally:
        log.close()


def test_a_bit_turned_over_anywhere_is_found(tmp_path: Path) -> None:
    """Of what is there, nothing else is read than what was written."""
    path, content, _ = two_records(tmp_path)
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(SpoolError, match=r"00\.spool', offset \d+: ."):
            assert read_all(path) == []


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_records_or_a_spool_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    path, content, _ = two_records(directory)
    for hostile in (content[:at] + noise + content[at:], content[:at] + noise, noise):
        for name in (path, path.parent / "head"):
            name.write_bytes(hostile)
        for read in (lambda: read_all(path), lambda: read_origin(path.parent / "head")):
            with contextlib.suppress(SpoolError):
                read()


@pytest.mark.parametrize(
    ("header", "body", "why"),
    [
        (b"\xc1", b"1234", "bad_header"),
        (b"\x80", b"1234", "unknown_type"),
        (b"\x81\xa1t\xa3bye", b"", "frame_count"),
        (encode(chunk_of("a", 1))[0], bytes(60), "size_mismatch|bad_chunk|no snapshot"),
        (encode(chunk_of("a", 1))[0], bytes(68), "size_mismatch|bad_chunk|no snapshot"),
        (encode(Reported("a", 1, {"x": 1.0}))[0], b"\xc1", "bad_header"),
        (encode(Chunk("a", 1, "float32", (4, 4), 64, 32, b""))[0], bytes(64), "bad_chunk"),
    ],
    ids=["no msgpack", "no message", "a bye", "short", "long", "no body", "in the middle"],
)
def test_a_record_that_says_what_it_is_not(tmp_path: Path, header: bytes, body: bytes, why: str) -> None:
    path = tmp_path / "00.spool"
    path.write_bytes(pack_preamble(SESSION, 0) + pack_record(0, bytes(header), body) + body)
    with pytest.raises(SpoolError, match=why):
        read_all(path)


def test_a_claim_of_exabytes_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "00.spool"
    header = bytes(encode(Chunk("a", 1, "float32", (1 << 23, 1 << 23), 1 << 48, 0, b""))[0])
    record = pack_record(0, header, b"")
    head = record[:8] + (1 << 48).to_bytes(8, "little") + record[16:32]
    path.write_bytes(pack_preamble(SESSION, 0) + head + zlib.crc32(head).to_bytes(4, "little") + header)
    log = Log(path, SESSION)
    assert list(log.records()) == [] and log.torn_bytes > 0
    log.close()


def test_what_is_no_file_of_this_spool_is_named(tmp_path: Path) -> None:
    path, content, _ = two_records(tmp_path)
    for other, why in (
        (content.replace(b"rankd-spool", b"other-spool"), "expected a file of a rankd spool"),
        (content[:12] + b"\x02\0" + content[14:], "version 2; this rankd reads 1"),
        (content[:14] + b"\x01\0" + content[16:], "it has the name of another"),
        (content[:16] + bytes(16) + content[32:], "another session"),
    ):
        path.write_bytes(other)
        with pytest.raises(SpoolError, match=why):
            Log(path, SESSION)
    path.unlink()
    path.mkdir()
    with pytest.raises(SpoolError, match="regular file"):
        Log(path, SESSION)
    path.rmdir()
    path.symlink_to("/dev/zero")
    with pytest.raises(SpoolError, match="cannot be read"):
        Log(path, SESSION)


def test_numbers_that_a_trainer_computed_are_kept_too(tmp_path: Path) -> None:
    report = Reported("a", 3, {"stable_rank": 2.5})
    header, body = map(bytes, encode(report))
    writer = Spooled(tmp_path, session=SESSION)
    assert writer.session.keep(("a", "weight"), 3, header, body, lambda: None)
    writer.close()
    assert read_all(writer.path / "00.spool") == [report]
