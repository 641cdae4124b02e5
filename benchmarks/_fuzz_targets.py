"""What is fuzzed: functions of bytes that raise where their invariant does not hold, and nothing else.

The invariant: whatever bytes a peer sends or a file holds, the reader of them gives a message or raises the one error
that it names; what decodes, encodes to the same again; and what is kept stays within its limits.

An input is split into frames at FRAME, and where a conversation is fuzzed, into messages at MESSAGE before.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankd.auth.keyring import Keyring
from rankd.config import Limits
from rankd.replay import BadRowError, read_rows, replay
from rankd.stages.assemble import Assemble
from rankd_client.keys import KeyFileError, load_key
from rankd_client.stream import StreamTracker
from rankd_client.stream.filters import Wanted
from rankd_client.wire import (
    MIN_CHUNK_BYTES,
    Chunk,
    Event,
    Message,
    Reply,
    Shard,
    WireError,
    decode,
    decode_event,
    decode_query,
    decode_reply,
    encode,
    encode_event,
    encode_query,
    encode_reply,
    query_id_of,
)

FRAME, MESSAGE = b"\n--\n", b"\n==\n"
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
STREAM_ID = "0123456789abcdef"

Target = Callable[[bytes], None]

LIMITS = Limits(
    max_layer_bytes=16 << 20,
    max_assembly_bytes=32 << 20,
    max_mailbox_bytes=16 << 20,
    max_open_layers=8,
    max_runs=3,
    max_layers_per_run=4,
)


def _codec(decoder: Callable[..., Any], encoder: Callable[..., Any]) -> Target:
    """Frames give a message that comes back as it was, or WireError."""

    def fuzz(data: bytes) -> None:
        try:
            message = decoder(data.split(FRAME))
        except WireError:
            return
        assert decoder(encoder(message)) == message, message

    return fuzz


fuzz_message = _codec(decode, encode)
fuzz_event = _codec(decode_event, encode_event)
fuzz_reply = _codec(decode_reply, encode_reply)
_fuzz_query = _codec(decode_query, encode_query)


def fuzz_query(data: bytes) -> None:
    """A query, and the id that a refusal of it names."""
    _fuzz_query(data)
    assert query_id_of(data.split(FRAME)) >= 0


def _decode_long(frames: list[bytes]) -> Message:
    """The message; a chunk that is only too short may stand for one of the shortest that need not be the last."""
    try:
        return decode(frames)
    except WireError as error:
        if error.code != "bad_chunk" or len(frames[1]) != 1:
            raise
        return decode([frames[0], frames[1] * MIN_CHUNK_BYTES])


def fuzz_assemble(data: bytes) -> None:
    """Chunks of a few runs and sessions, in whatever order and however they contradict each other: WireError or not,
    and never more memory or layers than the limits say. An empty message lets a minute go by."""
    assemble = Assemble(LIMITS, Counter())
    now = 0.0
    for number, frames in enumerate(message.split(FRAME) for message in data.split(MESSAGE)):
        now += 1.0
        if frames == [b""]:
            now += 60.0
            list(assemble.expire(now))
            continue
        try:
            chunk = _decode_long(frames)
            if isinstance(chunk, Chunk):
                session = b"%d" % (number % 2)
                assembled = assemble.add(f"run{chunk.step % 5}", session, chunk, now)
                if assembled.snapshot is not None:
                    assemble.settle((*assembled.snapshot.key, assembled.snapshot.step))
        except WireError:
            pass
        assert 0 <= assemble.num_bytes <= LIMITS.max_assembly_bytes, assemble.num_bytes
    list(assemble.expire(now + 3600.0))
    assert assemble.num_bytes == 0, "what was given up is still counted"


def fuzz_tracker(data: bytes) -> None:
    """A daemon that says anything to a subscriber: no exception at all behind the decoder. Three frames are an event,
    others a reply; an empty message is a second without one."""
    tracker = StreamTracker(Wanted(kinds=("alert", "measurement")))
    tracker.start()
    for frames in (message.split(FRAME) for message in data.split(MESSAGE)):
        if frames == [b""]:
            tracker.on_tick()
            continue
        try:
            message = decode_event(frames) if len(frames) == 3 else decode_reply(frames)
        except WireError:
            tracker.on_malformed()
            continue
        outcome = tracker.on_event(message) if isinstance(message, Event) else tracker.on_reply(message)
        assert all(encode_query(query) for query in outcome.queries)
    assert tracker.num_malformed >= 0


_directory = tempfile.TemporaryDirectory(prefix="rankd-")
_keyring = Keyring(Path(_directory.name))
_keyring.authorized_directory.mkdir(mode=0o700)


def fuzz_key_file(data: bytes) -> None:
    """A key file of any content gives a key, or KeyFileError that quotes no secret of it."""
    for path, read in (
        (Path(_directory.name) / "client.key", load_key),
        (_keyring.authorized_directory / "a.json", lambda path: _keyring.grant(path.stem)),
    ):
        path.touch(mode=0o600)
        path.write_bytes(data)
        try:
            read(path)
        except KeyFileError:
            continue


def fuzz_replay(data: bytes) -> None:
    """Lines of any kind, or gzip of any kind, are measurements or BadRowError; and whatever measurements there are, the
    rules judge them, and their alerts can be written as JSON."""
    bad: list[BadRowError] = []
    rows = read_rows(io.BufferedReader(io.BytesIO(data)), "fuzzed", bad.append)
    for alert in replay(rows):
        json.dumps(alert.to_json(), allow_nan=False)


TARGETS: dict[str, Target] = {
    "message": fuzz_message,
    "event": fuzz_event,
    "query": fuzz_query,
    "reply": fuzz_reply,
    "assemble": fuzz_assemble,
    "tracker": fuzz_tracker,
    "key_file": fuzz_key_file,
    "replay": fuzz_replay,
}
"""By name; a folder of tests/fuzz/corpus each."""


def seeds(target: str) -> list[bytes]:
    """Where fuzzing begins: the golden bytes of the protocol, good and refused, or what is well-formed."""
    if target == "assemble":
        return [_conversation(*pushes) for pushes in _pushes()]
    if target == "tracker":
        return [_stream()]
    if target == "key_file":
        return _key_files()
    if target == "replay":
        return [data := _recording(), gzip.compress(data)]
    rows = [*_golden("protocol1.json"), *_golden("refused1.json")]
    frames = [_frames(row["frames"]) for row in rows if row["decoder"] == target]
    return [data for data in map(FRAME.join, frames) if len(data) < 4096]


def _golden(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return rows


def _frames(frames: list[Any]) -> list[bytes]:
    """Of a golden row: hexadecimal, or {"hex": …, "times": n}."""
    return [bytes.fromhex(f) if isinstance(f, str) else bytes.fromhex(f["hex"]) * f["times"] for f in frames]


def _conversation(*chunks: Chunk) -> bytes:
    return MESSAGE.join(FRAME.join(map(bytes, encode(chunk))) for chunk in chunks)


def _pushes() -> list[list[Chunk]]:
    """Whole matrices, one in two shards of ranges, one in four of rectangles, one in two chunks (of which a byte stands
    for all), a repeat, and shards that disagree."""

    def chunk(layer: str, step: int, shape: tuple[int, ...], shard: Shard = Shard()) -> Chunk:  # noqa: B008
        total = shard.num_elements(shape) * 4
        return Chunk(layer, step, "float32", shape, total, 0, b"\x01" * total, shard=shard)

    ranges = [Shard(ranges=((0, 3), (5, 6))), Shard(ranges=((3, 5), (6, 8)))]
    cuts = [(0, 2, 0, 1), (0, 2, 1, 2), (2, 4, 0, 1), (2, 4, 1, 2)]
    whole = chunk("w", 1, (2, 3))
    first = Chunk("w", 1, "float32", (1024, 2048), 2 * MIN_CHUNK_BYTES, 0, b"\x01")
    return [
        [first, replace(first, offset=MIN_CHUNK_BYTES)],
        [whole, whole, chunk("w", 6, (2, 3)), chunk("v", 2, (3, 2))],
        [chunk("w", 1, (2, 4), shard) for shard in ranges],
        [chunk("w", 1, (4, 2), Shard(rectangles=(cut,))) for cut in cuts],
        [chunk("w", 1, (2, 4), ranges[0]), chunk("w", 1, (4, 2), ranges[1])],
    ]


def _stream() -> bytes:
    """A state, heartbeats, alerts with a hole in their numbers, the answer to a resume, and another stream."""

    def event(kind: str, run: str, seq: int, body: dict[str, Any], stream_id: str = STREAM_ID) -> list[bytes]:
        return encode_event(Event(kind, run, stream_id, seq, body))

    def alert(seq: int, run: str = "r") -> dict[str, Any]:
        return {"alert_id": f"a{seq}", "run": run, "layer": "w", "stream_id": STREAM_ID, "seq": seq, "state": "firing"}

    def answer(number: int, **more: Any) -> list[bytes]:
        return encode_reply(Reply(number, STREAM_ID, **more))

    state = {"numbers": [["alert", "r", 2], ["measurement", "@ns/r", 1]], "alerts": [alert(1)], "truncated": False}
    resumed = tuple(Event("alert", "r", STREAM_ID, seq, alert(seq)) for seq in (3, 4))
    messages = [
        event("heartbeat", "", 1, {"numbers": [["alert", "r", 2]], "dropped": {"dropped_events": 1}}),
        answer(1, body=state),
        answer(2, body=state),
        event("alert", "r", 5, alert(5)),
        event("measurement", "@ns/r", 2, {"run": "@ns/r", "layer": "w"}),
        [b""],
        answer(3, body={"first": 1, "last": 5}, events=resumed),
        event("heartbeat", "", 3, {"numbers": [["alert", "r", 9]]}),
        *[[b""]] * 8,
        event("alert", "r", 1, alert(1), "fedcba9876543210"),
    ]
    return MESSAGE.join(map(FRAME.join, messages))


def _recording() -> bytes:
    """A layer that collapses, turns NaN and zero, comes back, changes its shape, and a run that goes back."""
    readings = [8.0] * 7 + [2.0] * 5 + [None, 0.0] + [8.0] * 3
    rows = []
    for step, reading in enumerate([*readings, *readings[:7]]):
        row = {"run": "r", "step": 20 * (step % len(readings)), "layer": "w", "rows": 8 + step // 20, "cols": 8}
        metrics = dict.fromkeys(("stable_rank", "effective_rank", "spectral_norm"), reading)
        rows.append({**row, **metrics, "finite": reading is not None})
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _key_files() -> list[bytes]:
    key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"  # of ZeroMQ's documentation
    client = {"kind": "client-key", "version": 1, "name": "a", "namespace": "ns"}
    client |= {"public": key, "secret": key, "server": key}
    quota = {"max_runs": 3}
    grant = {"kind": "authorized", "version": 1, "name": "a", "namespace": "", "public": key}
    return [json.dumps(file).encode() for file in (client, {**grant, "rights": ["push", "admin"], "quota": quota})]
