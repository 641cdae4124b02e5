"""What is fuzzed: functions of bytes that raise where their invariant does not hold, and nothing else.

The invariant: whatever bytes a peer sends or a file holds, the reader of them gives a message or raises the one error
that it names; what decodes, encodes to the same again; and what is kept stays within its limits.

An input is split into frames at FRAME, and where a conversation is fuzzed, into messages at MESSAGE before.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankd.auth.keyring import Keyring
from rankd.config import Limits
from rankd.gate.framing import Framing
from rankd.gate.limits import ALERTS_LIMITS, QUERY_LIMITS, push_limits
from rankd.replay import BadRowError, read_rows, replay
from rankd.stages.assemble import Assemble
from rankd_client.keys import KeyFileError, load_key
from rankd_client.stream import StreamTracker
from rankd_client.stream.filters import Wanted
from rankd_client.wire import (
    LOCAL_VERSION,
    MIN_CHUNK_BYTES,
    Chunk,
    Event,
    Message,
    WireError,
    decode,
    decode_event,
    decode_handover,
    decode_query,
    decode_reply,
    encode,
    encode_event,
    encode_handover,
    encode_query,
    encode_reply,
    query_id_of,
)

FRAME, MESSAGE = b"\n--\n", b"\n==\n"

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


def _decode(frames: list[bytes]) -> Message:
    """As on a connection of the newest version."""
    return decode(frames, LOCAL_VERSION)


fuzz_message = _codec(_decode, encode)
fuzz_event = _codec(decode_event, encode_event)
fuzz_reply = _codec(decode_reply, encode_reply)
fuzz_handover = _codec(lambda frames: decode_handover(FRAME.join(frames)), lambda message: [encode_handover(message)])
_fuzz_query = _codec(decode_query, encode_query)


def fuzz_query(data: bytes) -> None:
    """A query, and the id that a refusal of it names."""
    _fuzz_query(data)
    assert query_id_of(data.split(FRAME)) >= 0


def _decode_long(frames: list[bytes]) -> Message:
    """The message; a chunk that is only too short may stand for one of the shortest that need not be the last."""
    try:
        return _decode(frames)
    except WireError as error:
        if error.code != "bad_chunk" or len(frames[1]) != 1:
            raise
        return _decode([frames[0], frames[1] * MIN_CHUNK_BYTES])


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


GATE_LIMITS = (push_limits(16 << 20, 1 << 30), ALERTS_LIMITS, QUERY_LIMITS)


def fuzz_framing(data: bytes) -> None:
    """What a peer sends to the gate, after a byte that chooses the listener and another that chooses the pieces in
    which it arrives: no exception, nothing let through that was not fed, and the same end however it was cut."""
    if len(data) < 2:
        return
    choice, piece_bytes = data[0], 1 + data[1] % 70
    limits, mechanism = GATE_LIMITS[choice % 3], ("NULL", "CURVE")[choice // 3 % 2]
    ends = [_feed(Framing(limits, mechanism), data[2:], step) for step in (len(data), piece_bytes)]
    assert ends[0] == ends[1], ends


def _feed(framing: Framing, data: bytes, piece_bytes: int) -> tuple[Any, ...]:
    waiting = b""
    for start in range(0, len(data), piece_bytes):
        waiting += data[start : start + piece_bytes]
        before = framing.position
        taken = framing.feed(memoryview(waiting), 1 << 30)
        assert 0 <= taken <= len(waiting) and framing.position == before + taken, (taken, len(waiting))
        waiting = waiting[taken:]
        if framing.breach:
            break
        framing.ends.clear()
    reason = framing.breach and framing.breach.reason
    return reason, framing.position, framing.num_messages, framing.reserved_bytes, framing.is_open, framing.is_inside


TARGETS: dict[str, Target] = {
    "message": fuzz_message,
    "event": fuzz_event,
    "query": fuzz_query,
    "reply": fuzz_reply,
    "handover": fuzz_handover,
    "assemble": fuzz_assemble,
    "tracker": fuzz_tracker,
    "key_file": fuzz_key_file,
    "replay": fuzz_replay,
    "framing": fuzz_framing,
}
"""By name; a folder of tests/fuzz/corpus each."""
