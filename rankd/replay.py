"""Recorded measurements through the rules again: the daemon's own code, without its clock and its sockets.

Deterministic: the same rows in the same order give the same alerts, and those of the daemon that recorded them.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

from rankd.judge import DEFAULT_CONFIG, DetectConfig, RunJudges
from rankd.records import Alert, Measurement

GZIP_MAGIC = b"\x1f\x8b"
READ_BYTES = 1 << 14
"""Of a gzip stream at once: what damage costs of the lines before it."""


class BadRowError(ValueError):
    """A line that is no measurement, or a file that ends or cannot be read there: FILE:LINE and why."""


def replay(
    measurements: Iterable[Measurement],
    config: DetectConfig = DEFAULT_CONFIG,
    stream_ids: Mapping[str, str] | None = None,
) -> Iterator[Alert]:
    """The alerts of `measurements`, in their order. Numbers count from 1 for each run, as a daemon's do; the stream id
    is the run's of `stream_ids`, else empty; the time is the measurement's, else 0."""
    judges = RunJudges(config)
    numbers: Counter[str] = Counter()
    for measurement in measurements:
        for alert in judges.update(measurement):
            numbers[alert.run] += 1
            yield replace(alert, stream_id=(stream_ids or {}).get(alert.run, ""), seq=numbers[alert.run])


def read_file(path: Path, on_bad: Callable[[BadRowError], None] | None = None) -> Iterator[Measurement]:
    """The measurements of a .jsonl or .jsonl.gz file. Raises OSError where it cannot be opened; else see read_rows."""
    with path.open("rb") as file:
        yield from read_rows(file, str(path), on_bad)


def read_rows(
    stream: BufferedIOBase, name: str, on_bad: Callable[[BadRowError], None] | None = None
) -> Iterator[Measurement]:
    """The measurements of a stream of JSON lines, gzip or not, each as soon as its line has come. Empty lines are
    none. `on_bad` is told what is no measurement; without it that is raised."""
    on_bad = on_bad or _raise
    num_lines = 0
    try:
        for line in _lines(stream, name):
            num_lines += 1
            try:
                measurement = _parse(line)
            except (ValueError, RecursionError) as error:
                on_bad(BadRowError(f"{name}:{num_lines}: {_why(line, error)}"))
                continue
            if measurement is not None:
                yield measurement
    except (OSError, EOFError, zlib.error) as error:
        on_bad(BadRowError(f"{name}:{num_lines + 1}: cannot be read: {error}"))


def _lines(stream: BufferedIOBase, name: str) -> Iterable[bytes]:
    peek = getattr(stream, "peek", None)
    zipped = name.endswith(".gz") or (peek is not None and peek(2)[:2] == GZIP_MAGIC)
    return _unzipped_lines(stream) if zipped else stream


def _unzipped_lines(stream: BufferedIOBase) -> Iterator[bytes]:
    """The lines of a gzip stream as they come. Unlike GzipFile's, all that is whole in a file that breaks off or is
    still being written. Raises EOFError there, and zlib.error for damage."""
    member = zlib.decompressobj(zlib.MAX_WBITS + 16)
    begun, rest = False, b""
    while data := stream.read1(READ_BYTES):
        while data:
            begun = True
            *lines, rest = (rest + member.decompress(data)).split(b"\n")
            for line in lines:
                yield line + b"\n"
            data = member.unused_data
            if member.eof:
                data = data.lstrip(b"\0")  # padding
                member, begun = zlib.decompressobj(zlib.MAX_WBITS + 16), False
    if begun:
        raise EOFError("it ends in the middle; is it still being written?")
    if rest:
        yield rest


def _parse(line: bytes) -> Measurement | None:
    """None for an empty line. Raises ValueError or RecursionError."""
    if line.isspace():
        return None
    row = _decode(line.decode())
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    return Measurement.from_json(row)


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; expected a number or null")


_decode: Callable[[str], Any] = json.JSONDecoder(parse_constant=_no_such_number).decode


def _why(line: bytes, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply; expected one JSON object"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        if not line.endswith(b"\n"):
            return "the last line ends in the middle; is the file still being written?"
        return f"no JSON: {error}; expected one object"
    return str(error)


def _raise(error: BadRowError) -> NoReturn:
    raise error
