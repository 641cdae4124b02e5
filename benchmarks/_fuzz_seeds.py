"""Where the fuzzing of each target begins: what is well-formed, and what is refused for a known reason."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from _fuzz_targets import FRAME, MESSAGE

from rankd.gate.framing import CANCEL, COMMAND, LONG, MORE, SUBSCRIBE
from rankd_client.wire import DTYPES, MIN_CHUNK_BYTES, Chunk, Event, Reply, Shard, encode, encode_event, encode_reply

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
STREAM_ID = "0123456789abcdef"


def seeds(target: str) -> list[bytes]:
    """Where fuzzing begins: the golden bytes of the protocol, good and refused, or what is well-formed."""
    if target == "assemble":
        return [_conversation(*pushes) for pushes in _pushes()]
    if target == "tracker":
        return [_stream()]
    if target == "key_file":
        return _key_files()
    if target == "framing":
        return _connections()
    if target == "replay":
        return [data := _recording(), gzip.compress(data)]
    files = [f"{name}{version}.json" for version in (1, 2, 3) for name in ("protocol", "refused")]
    rows = [row for name in files for row in _golden(name)]
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
    for all), a repeat, and shards that disagree; with scales one that is whole, one by rows, and one that a chunk's end
    cuts within a scale."""

    def chunk(
        layer: str,
        step: int,
        shape: tuple[int, ...],
        shard: Shard = Shard(),  # noqa: B008
        dtype: str = "float32",
    ) -> Chunk:
        total = DTYPES[dtype].num_bytes(shard.num_elements(shape), shape)
        return Chunk(layer, step, dtype, shape, total, 0, b"\x01" * total, shard=shard)

    ranges = [Shard(ranges=((0, 3), (5, 6))), Shard(ranges=((3, 5), (6, 8)))]
    cuts = [(0, 2, 0, 1), (0, 2, 1, 2), (2, 4, 0, 1), (2, 4, 1, 2)]
    whole = chunk("w", 1, (2, 3))
    long = Chunk("w", 1, "int8", (1, MIN_CHUNK_BYTES - 2), MIN_CHUNK_BYTES + 2, 0, b"\x01")
    first = Chunk("w", 1, "float32", (1024, 2048), 2 * MIN_CHUNK_BYTES, 0, b"\x01")
    return [
        [first, replace(first, offset=MIN_CHUNK_BYTES)],
        [whole, whole, chunk("w", 6, (2, 3)), chunk("v", 2, (3, 2))],
        [chunk("w", 1, (2, 4), shard) for shard in ranges],
        [chunk("w", 1, (4, 2), Shard(rectangles=(cut,))) for cut in cuts],
        [chunk("w", 1, (2, 4), ranges[0]), chunk("w", 1, (4, 2), ranges[1])],
        [chunk("w", 1, (2, 3), dtype="float8_e4m3fn"), chunk("w", 6, (1, 16, 16), dtype="float8_e5m2")],
        [chunk("w", 1, (4, 2), Shard(rectangles=(row,)), "int8") for row in ((0, 1, 0, 2), (1, 4, 0, 2))],
        [long, replace(long, offset=MIN_CHUNK_BYTES, payload=b"\x01" * 2)],
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


def _connections() -> list[bytes]:
    """Greeting, handshake and some frames, of each listener and mechanism."""

    def frame(flags: int, body: bytes) -> bytes:
        size = len(body).to_bytes(8, "big") if flags & LONG else bytes([len(body)])
        return bytes([flags]) + size + body

    def greeting(mechanism: bytes) -> bytes:
        return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)

    null = greeting(b"NULL") + frame(COMMAND, b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER")
    curve = (
        greeting(b"CURVE") + frame(COMMAND, b"\x05HELLO" + bytes(194)) + frame(COMMAND, b"\x08INITIATE" + bytes(100))
    )
    frames = frame(0, b"x" * 40) + frame(MORE, b"head") + frame(LONG, b"y" * 300) + frame(0, b"")
    subscriptions = frame(0, b"\x01alert\0") + frame(COMMAND, SUBSCRIBE + b"a") + frame(COMMAND, CANCEL + b"a")
    pieces = b"\x09"
    listeners = [(0, null + frames), (1, null + subscriptions), (2, null + frames), (3, curve + frames)]
    return [bytes([choice]) + pieces + sent for choice, sent in listeners]


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
