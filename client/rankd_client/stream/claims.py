"""What the body of a heartbeat or of a state reply claims. What makes no sense is counted, not used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankd_client.stream.filters import Wanted
from rankd_client.wire import MAX_STEP, WireError, full_run_name
from rankd_client.wire import fields as f

Key = tuple[str, str]
"""(kind, run): a topic."""

MAX_STREAMS_TOLD = 100
"""Each that is read may cost a query for every topic."""

_check_kind = f.one_of("bad_field", ("alert", "measurement"))
_check_seq = f.integer(1, MAX_STEP)
at_least_0 = f.integer(0, MAX_STEP)


@dataclass(slots=True)
class Claims:
    """`numbers`: the newest number of each topic; `firing`: alerts with a valid run, stream_id and seq; `streams`:
    those of the history, if it says; `everybody`: the state covers every namespace."""

    numbers: dict[Key, int] = field(default_factory=dict)
    firing: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False
    streams: tuple[str, ...] = ()
    everybody: bool = False
    num_malformed: int = 0


def valid_topic(kind: object, run: object, seq: object, check_seq: f.Check = _check_seq) -> bool:
    try:
        _check_kind("kind", kind)
        full_run_name("run", run)
        check_seq("seq", seq)
    except WireError:
        return False
    return True


def valid_stream(stream_id: object) -> bool:
    try:
        f.stream_id("stream_id", stream_id)
    except WireError:
        return False
    return True


def read_claims(body: Mapping[str, Any], wanted: Wanted) -> Claims:
    """What is claimed of the topics that are wanted."""
    claims = Claims(truncated=bool(body.get("truncated")), everybody=body.get("namespace", "") is None)
    streams = body.get("streams")
    if isinstance(streams, list) and all(map(valid_stream, streams[-MAX_STREAMS_TOLD:])):
        claims.streams = tuple(streams[-MAX_STREAMS_TOLD:])
    for entry in _entries(body, "numbers"):
        if isinstance(entry, list) and len(entry) == 3 and valid_topic(entry[0], entry[1], entry[2], at_least_0):
            kind, run, seq = entry
            claims.numbers[kind, run] = max(seq, claims.numbers.get((kind, run), 0))
        else:
            claims.num_malformed += 1
    for alert in _entries(body, "alerts"):
        if (
            isinstance(alert, dict)
            and isinstance(alert.get("stream_id"), str)
            and valid_topic("alert", alert.get("run"), alert.get("seq"))
        ):
            claims.firing.append(alert)
        else:
            claims.num_malformed += 1
    claims.numbers = {key: seq for key, seq in claims.numbers.items() if wanted.topic(*key)}
    claims.firing = [alert for alert in claims.firing if wanted.topic("alert", alert["run"])]
    return claims


def _entries(body: Mapping[str, Any], key: str) -> list[Any]:
    entries = body.get(key, [])
    return entries if isinstance(entries, list) else [None]
