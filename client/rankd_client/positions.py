"""A file that says up to where a subscriber has dealt with what it was given, so that it can go on from there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankd_client.stream.claims import at_least_0, valid_stream, valid_topic
from rankd_client.stream.items import Mark
from rankd_client.stream.severity import MAX_BEGUN, TOKEN_BYTES, Begun
from rankd_client.stream.topics import MAX_STREAMS, MAX_TOPICS, Places

VERSION = 1
MAX_FILE_BYTES = 64 << 20
"""Far more than the places of MAX_TOPICS topics in MAX_STREAMS streams; nothing larger is read into memory."""

MAX_OWED = 100_000


@dataclass(slots=True)
class Position:
    """`places`: see StreamTracker.places. `owed`: alerts behind them that are still to be shown while they fire.
    `complete`: a topic without a place is to be read from its number 1. `begun`: alerts whose end is to be shown,
    however mild."""

    places: Places = field(default_factory=dict)
    owed: set[Mark] = field(default_factory=set)
    complete: bool = True
    begun: Begun = field(default_factory=Begun, compare=False)


class PositionsFile:
    """`PATH`, replaced as a whole each time, and `PATH.lock`, held as long as the subscriber lives.

    Raises ValueError naming the file where another subscriber holds it, where it is of another subscription (`wanted`
    says what this one is to), where it is damaged, and where it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], wanted: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._wanted = json.loads(json.dumps(wanted))
        self._lock = self._hold()
        try:
            self.position = self._load()
        except BaseException:
            self.close()
            raise

    def _hold(self) -> int:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ValueError(f"since_last={str(self.path)!r}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise ValueError(
                f"since_last={str(self.path)!r}: another subscriber uses this file; expected one file for each"
            ) from None
        return lock

    def _load(self) -> Position | None:
        """None where there is no file yet: the first time."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"since_last={str(self.path)!r}: cannot be read: {error.strerror}") from None
        try:
            value = json.loads(content)
            if value["kind"] != "rankd-positions" or value["version"] != VERSION:
                raise ValueError("another kind or version")
            position, wanted = _position_of(value), value["wanted"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"since_last={str(self.path)!r} is damaged, or no file of positions; expected what a subscriber wrote, "
                "or no file, to begin with what fires now"
            ) from None
        if wanted != self._wanted:
            raise ValueError(
                f"since_last={str(self.path)!r} is of a subscription to {json.dumps(wanted)}; this one is to "
                f"{json.dumps(self._wanted)}; expected a file of its own"
            )
        return position

    def save(self, position: Position) -> None:
        """Atomically: whoever reads the file finds the old content or this one. Raises OSError."""
        value = {
            "kind": "rankd-positions",
            "version": VERSION,
            "wanted": self._wanted,
            "complete": position.complete,
            "streams": [
                {"stream_id": stream_id, "topics": [[*key, seq] for key, seq in topics.items()]}
                for stream_id, topics in position.places.items()
            ],
            "owed": [[mark.stream_id, mark.run, mark.seq] for mark in position.owed],
            "begun": list(position.begun),
        }
        temporary = Path(f"{self.path}.new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # an earlier life's; or a link, where others can write: what it leads to is not ours
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(fd)  # or a power cut may leave the new name with nothing in it
        temporary.replace(self.path)

    def close(self) -> None:
        """Let others use the file. Any number of times."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = -1


def _position_of(value: Mapping[str, Any]) -> Position:
    """Raises ValueError, KeyError or TypeError for anything that `save` does not write."""
    position = Position(complete=value["complete"])
    streams, owed = value["streams"], value["owed"]
    if type(position.complete) is not bool or len(streams) > MAX_STREAMS or len(owed) > MAX_OWED:
        raise ValueError("more than there can be")
    for stream in streams:
        topics = position.places[stream["stream_id"]] = {
            (kind, run): seq for kind, run, seq in stream["topics"] if valid_topic(kind, run, seq, at_least_0)
        }
        if not valid_stream(stream["stream_id"]) or len(topics) != len(stream["topics"]):
            raise ValueError("a place that there cannot be")
        if len(topics) > 2 * MAX_TOPICS:
            raise ValueError("more topics than there can be")
    for stream_id, run, seq in owed:
        if not isinstance(stream_id, str) or not valid_topic("alert", run, seq):
            raise ValueError("an alert that there cannot be")
        position.owed.add(Mark(stream_id, "alert", run, seq, in_turn=False))
    begun = value.get("begun", [])
    if len(begun) > MAX_BEGUN or any(len(bytes.fromhex(token)) != TOKEN_BYTES for token in begun):
        raise ValueError("an alert that there cannot be")
    position.begun = Begun(begun)
    return position
