"""What a subscriber is given: items and gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankd_client.wire import Query


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an item stands. Not `in_turn`: an alert that fires already, shown although its number was passed before."""

    stream_id: str
    kind: str
    run: str
    seq: int
    in_turn: bool = True


class Item(dict[str, Any]):
    """An alert or a measurement: the map of the wire, whose keys can be read as attributes too. `stream`, "alert" or
    "measurement", and `mark` are no keys of the map."""

    __slots__ = ("mark", "stream")
    mark: Mark | None
    stream: str

    def __init__(self, body: Mapping[str, Any], stream: str, mark: Mark | None = None) -> None:
        super().__init__(body)
        self.stream = stream
        self.mark = mark

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this {type(self).__name__} has no key {name!r}") from None


@dataclass(frozen=True, slots=True)
class Gap:
    """Events `first_seq` to `last_seq`, inclusive, of one topic that were missed and that the daemon no longer has."""

    stream_id: str
    kind: str
    run: str
    first_seq: int
    last_seq: int

    @property
    def num_events(self) -> int:
        return self.last_seq - self.first_seq + 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one input led to: items to yield, queries to send, gaps to report, each in order."""

    items: tuple[Item, ...] = ()
    queries: tuple[Query, ...] = ()
    gaps: tuple[Gap, ...] = ()
