"""The push connection's messages: what single bytes cannot show."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest

from rankd_client.wire import (
    MAX_STEP,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Refusal,
    Shard,
    WireError,
    decode,
    decode_event,
    decode_reply,
    encode,
)

MIB = 1 << 20
CHUNK = {"t": "chunk", "layer": "w", "step": 1, "dtype": 2, "shape": [2, 2], "total_bytes": 16, "offset": 0}


def peak_bytes_of_refusing(decoder: Callable[[Sequence[bytes]], Any], frames: Sequence[bytes]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decoder(frames)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claim", [{"shape": [1 << 23, 1 << 24]}, {"total_bytes": MAX_STEP}, {"offset": MAX_STEP}])
def test_a_claim_of_terabytes_allocates_nothing(claim: dict[str, Any]) -> None:
    assert peak_bytes_of_refusing(decode, [msgpack.packb(CHUNK | claim), bytes(16)]) < 64 << 10


def test_a_true_claim_of_terabytes_allocates_nothing_either() -> None:
    elements = 1 << 47
    header = CHUNK | {"shape": [1 << 23, 1 << 24], "total_bytes": elements * 4}
    frames = [msgpack.packb(header), bytes(4 * MIB)]
    tracemalloc.start()
    message = decode(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(message, Chunk)
    assert message.total_bytes == elements * 4
    assert peak < 64 << 10


def test_lists_that_claim_elements_inside_one_another_cost_little() -> None:
    """Each claims as much as fits the frame: a decoder that makes room for all of it pays depth times the frame."""
    many = 60_000
    header = b"\x82\xa1t\xa3bye\xa1x" + (b"\xdd" + many.to_bytes(4, "big")) * 1000 + bytes(many)
    assert peak_bytes_of_refusing(decode, [header]) < 10 * MIB
    body = b"\x81\xa1x" + (b"\xdd" + (4_000_000).to_bytes(4, "big")) * 1000 + bytes(4_000_000)
    assert peak_bytes_of_refusing(decode_event, [b"alert\0r\0", bytes(16), body]) < 10 * MIB
    assert peak_bytes_of_refusing(decode_reply, [body]) < 10 * MIB


def test_the_frames_of_an_endless_message_are_counted_before_they_are_read() -> None:
    assert peak_bytes_of_refusing(decode, [b"\x80"] * 20_000) < 64 << 10
    assert peak_bytes_of_refusing(decode_reply, [b"\x80"] * 3004) < 64 << 10


def test_the_longest_shard_fits_a_header() -> None:
    far = (1 << 40) + 1
    rectangles = tuple((far + 2 * i, far + 2 * i + 1, 0, 1) for i in range(1024))
    chunk = Chunk("n" * 1024, MAX_STEP, "float64", (1 << 42, 8), 8192, 0, bytes(8192), shard=Shard(rectangles))
    header, payload = encode(chunk)
    assert len(header) <= 64 << 10
    assert decode([header, payload]) == chunk


def test_a_shard_of_one_piece_more_is_refused_before_its_pieces_are_looked_at() -> None:
    ranges = [[2 * i, 2 * i + 1] for i in range(1025)]
    header = CHUNK | {"shape": [4096, 1], "total_bytes": 4100, "ranges": ranges}
    with pytest.raises(WireError, match="bad_header"):
        decode([msgpack.packb(header), bytes(4100)])


def test_a_shards_last_chunk_may_be_short_and_no_other() -> None:
    total = 8 * MIB + 4
    shape = (1, total // 4)
    first = Chunk("w", 1, "float32", shape, total, 0, bytes(4 * MIB))
    last = Chunk("w", 1, "float32", shape, total, 8 * MIB, bytes(4))
    assert decode(encode(first)) == first
    assert decode(encode(last)) == last
    short = Chunk("w", 1, "float32", shape, total, 0, bytes(4 * MIB - 4))
    with pytest.raises(WireError, match="bad_chunk"):
        decode(encode(short))


@pytest.mark.parametrize(("offset", "num_bytes"), [(2, 4 * MIB), (0, 4 * MIB + 2), (4 * MIB + 4, 4 * MIB)])
def test_long_chunks_too_cut_no_element_and_stay_within_their_total(offset: int, num_bytes: int) -> None:
    total = 8 * MIB
    chunk = Chunk("w", 1, "float32", (1, total // 4), total, offset, bytes(num_bytes))
    with pytest.raises(WireError, match="bad_chunk"):
        decode(encode(chunk))


@pytest.mark.parametrize("as_frame", [bytes, bytearray, memoryview])
def test_frames_may_be_any_bytes(as_frame: Callable[[bytes], Any]) -> None:
    assert decode([as_frame(msgpack.packb({"t": "heartbeat"}))]) == Heartbeat()


def test_a_detail_too_long_is_cut_between_characters() -> None:
    message = decode(encode(Refusal("bad_name", "é" * 5000)))
    assert isinstance(message, Refusal)
    assert message.detail == "é" * 2048


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"binary", {1: 2}])
def test_an_alert_that_could_not_be_json_is_not_sent(value: Any) -> None:
    with pytest.raises(WireError, match="bad_body"):
        encode(AlertNotice({"value": [value]}))


def test_a_header_that_would_be_refused_is_not_sent() -> None:
    with pytest.raises(ValueError, match="65536"):
        encode(AlertNotice({"message": "x" * (64 << 10)}))


def test_ignored_keys_may_hold_what_ours_may_not() -> None:
    assert decode([msgpack.packb({"t": "bye", "later": [b"\0", float("nan"), {"x": None}]})]) == Bye()
