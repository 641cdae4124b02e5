"""Golden bytes, read as another implementation would: what is written, accepted or refused once stays so."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankd_client import wire
from rankd_client.wire import CODES, Chunk, Event, Handover, Message, Plan, Query, Reply, Shard, WireError

GOLDEN = Path(__file__).parents[2] / "golden"
ENCODERS: dict[str, Callable[..., Any]] = {
    "message": wire.encode,
    "event": wire.encode_event,
    "query": wire.encode_query,
    "reply": wire.encode_reply,
    "handover": lambda message: [wire.encode_handover(message)],
}
DECODERS: dict[str, Callable[..., Any]] = {
    "message": wire.decode,
    "event": wire.decode_event,
    "query": wire.decode_query,
    "reply": wire.decode_reply,
    "handover": lambda frames: wire.decode_handover(frames[0]),
}


def rows_of(name: str, *versions: int) -> list[dict[str, Any]]:
    """Of the files of these versions of the protocol, as each later version reads them too."""
    found = []
    for version in versions:
        rows = json.loads((GOLDEN / f"{name}{version}.json").read_text(encoding="utf-8"))
        found += [{**row, "version": read} for row in rows for read in range(version, 4)]
    return found


def is_taken_later(row: dict[str, Any]) -> bool:
    """Whether a later version than the row's own takes what an older implementation, or connection, refuses so."""
    scales = row["code"] == "reserved_dtype" and row["version"] > 1 and row["why"] != "code 8"  # 5 to 7 are version 2's
    return scales or (row["code"], row["why"]) == ("unknown_version", "version 3")


ACCEPTED = rows_of("protocol", 1, 2, 3)
REFUSED = [row for row in rows_of("refused", 1, 2, 3) if not is_taken_later(row)]

RAISED_BY_THE_DAEMON = {
    "no_hello",
    "wrong_direction",
    "credit_exceeded",
    "chunk_order",
    "shard_conflict",
    "layer_too_large",
    "too_many_connections",
    "too_many_runs",
    "too_many_layers",
    "assembly_full",
    "timed_out",
    "measure_failed",
    "not_allowed",
    "quota_exceeded",
    "unknown_token",
    "bad_memory",
    "too_much_lent",
    "not_lent",
    "loan_ended",
    "busy",
    "unavailable",
}
"""Rules about a conversation, which single messages cannot break: tested with the stages that keep it."""


def frames_of(row: dict[str, Any]) -> list[bytes]:
    return [
        bytes.fromhex(frame) if isinstance(frame, str) else bytes.fromhex(frame["hex"]) * frame["times"]
        for frame in row["frames"]
    ]


def decoded(row: dict[str, Any]) -> Any:
    decoder = DECODERS[row["decoder"]]
    return decoder(frames_of(row), row["version"]) if decoder is wire.decode else decoder(frames_of(row))


def name_of(row: dict[str, Any]) -> str:
    name = row["name"] if "name" in row else f"{row['code']}, {row['decoder']}: {row['why']}"
    return f"{name}, version {row['version']}"


def chunk_of(fields: dict[str, Any]) -> Chunk:
    rectangles, ranges = (tuple(map(tuple, fields["shard"][key])) for key in ("rectangles", "ranges"))
    shard = Shard(rectangles, ranges, fields["shard"]["replica"])
    payload, shape = bytes.fromhex(fields["payload"]), tuple(fields["shape"])
    return Chunk(**{**fields, "payload": payload, "shape": shape, "shard": shard})


def message_of(row: dict[str, Any]) -> Any:
    """The message that the row's JSON `fields` describe."""
    values = {k: bytes.fromhex(v) if k in ("session", "payload") else v for k, v in row["fields"].items()}
    if row["type"] == "Chunk":
        return chunk_of(row["fields"])
    if row["type"] == "Lent":
        values["chunk"] = chunk_of(values["chunk"])
    if row["type"] == "Lend":
        values["sizes"] = tuple(values["sizes"])
    if row["type"] == "Welcome":
        values["plan"] = Plan(**values["plan"])
    if row["type"] == "Reply":
        values["events"] = tuple(Event(**event) for event in values["events"])
    return getattr(wire, row["type"])(**values)


@pytest.mark.parametrize("row", ACCEPTED, ids=name_of)
def test_golden_bytes_decode_to_their_message(row: dict[str, Any]) -> None:
    assert decoded(row) == message_of(row)


@pytest.mark.parametrize("row", [row for row in ACCEPTED if not row.get("decode_only")], ids=name_of)
def test_messages_encode_to_their_golden_bytes(row: dict[str, Any]) -> None:
    assert ENCODERS[row["decoder"]](message_of(row)) == frames_of(row)


def test_every_type_of_message_has_golden_bytes() -> None:
    types = {kind.__name__ for kind in (*typing.get_args(Message), *typing.get_args(Handover), Event, Query, Reply)}
    assert {row["type"] for row in ACCEPTED if not row.get("decode_only")} == types


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
def test_bad_bytes_are_refused_with_the_code_of_the_rule(row: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        decoded(row)
    assert caught.value.code == row["code"]
    assert len(caught.value.detail) < 400
    assert caught.value.detail.isprintable()


SCALED = [row for row in ACCEPTED if row.get("fields", {}).get("dtype") in ("int8", "float8_e4m3fn", "float8_e5m2")]


@pytest.mark.parametrize("row", SCALED, ids=name_of)
def test_a_connection_of_version_1_carries_no_scales(row: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="is reserved in version 1"):
        wire.decode(frames_of(row))


LOCAL = [row for row in rows_of("protocol", 3) if row["type"] in ("Lent", "Reported")]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("row", LOCAL, ids=name_of)
def test_older_connections_carry_neither_loans_nor_numbers(row: dict[str, Any], version: int) -> None:
    with pytest.raises(WireError, match="unknown_type"):
        wire.decode(frames_of(row), version)


def test_every_code_has_bytes_that_are_refused_with_it() -> None:
    assert {row["code"] for row in REFUSED} | RAISED_BY_THE_DAEMON == set(CODES)
    assert not {row["code"] for row in REFUSED} & RAISED_BY_THE_DAEMON


def test_an_error_with_a_code_beyond_the_table_is_our_own_mistake() -> None:
    with pytest.raises(KeyError, match="made_up"):
        WireError("made_up", "")


def test_payloads_are_passed_on_without_a_copy() -> None:
    payload = bytearray(4 << 20)
    chunk = Chunk("w", 1, "float32", (1 << 10, 1 << 10), 4 << 20, 0, payload)
    header, sent = wire.encode(chunk)
    assert sent is payload
    received = wire.decode([header, memoryview(payload)])
    assert isinstance(received, Chunk)
    assert isinstance(received.payload, memoryview)
    assert received.payload.obj is payload
    assert received.last
