"""A daemon's bookkeeping without sockets or disk: numbers, keeps and answers as docs/protocol.md asks of a daemon."""

from __future__ import annotations

from typing import Any

from rankd_client.stream import Item, Outcome, StreamTracker
from rankd_client.stream.filters import Wanted
from rankd_client.wire import Event, Query, Reply, decode_event, decode_reply, encode_event, encode_query, encode_reply

STREAM, OTHER = "00000000000000aa", "00000000000000bb"
Key = tuple[str, str]


class Daemon:
    """`ring` is per topic. A history of streams: an event's number is its place in its topic less the stream's base.

    `tell_streams`: states name the history's streams, and topics that have no number in this one yet.

    `detach` is a history that cannot be written any more, `recover` one that can, `crash` a death and a restart.
    """

    def __init__(
        self, stream_id: str = STREAM, ring: int = 1 << 60, reply_events: int = 1000, tell_streams: bool = False
    ) -> None:
        self.ring, self.reply_events, self.tell_streams = ring, reply_events, tell_streams
        self.topics: dict[Key, list[dict[str, Any]]] = {}
        self.streams: list[tuple[str, dict[Key, int]]] = [(stream_id, {})]
        self.changed: dict[Key, int] = {}
        self.firing: dict[str, dict[str, Any]] = {}
        self.heartbeats = 0
        self.truncated = False
        self._written: tuple[dict[Key, int], dict[str, dict[str, Any]], int] | None = None  # None: all of it

    @property
    def stream_id(self) -> str:
        return self.streams[-1][0]

    def base(self, key: Key, at: int = -1) -> int:
        return self.streams[at][1].get(key, 0)

    def publish(self, run: str = "r", kind: str = "alert", **body: Any) -> Event:
        bodies = self.topics.setdefault((kind, run), [])
        seq = len(bodies) + 1 - self.base((kind, run))
        if kind == "alert":
            body = {"alert_id": f"{self.stream_id}-{run}-{seq}", "state": "firing", "layer": "a"} | body
        body |= {"run": run, "stream_id": self.stream_id, "seq": seq}
        if kind == "alert":
            self.firing.pop(body["alert_id"], None)
            if body["state"] == "firing":
                self.firing[body["alert_id"]] = body
        bodies.append(body)
        self.changed[kind, run] = seq
        return wired(Event(kind, run, self.stream_id, seq, body))

    def heartbeat(self) -> Event:
        self.heartbeats += 1
        numbers = [[kind, run, seq] for (kind, run), seq in self.changed.items()]
        self.changed.clear()
        body = {"numbers": numbers, "dropped": {"dropped_events": 3}, "time": 0.0, "state": "serving"}
        return wired(Event("heartbeat", "", self.stream_id, self.heartbeats, body))

    def detach(self, stream_id: str) -> None:
        lengths = {key: len(bodies) for key, bodies in self.topics.items()}
        if self._written is None:
            self._written = lengths, dict(self.firing), len(self.streams)
        self.streams.append((stream_id, lengths))
        self.changed.clear()

    def recover(self) -> None:
        self._written = None

    def crash(self) -> None:
        """Starts again with its history; what was not written is gone."""
        if self._written is not None:
            lengths, self.firing, num_streams = self._written
            self.topics = {key: bodies[: lengths.get(key, 0)] for key, bodies in self.topics.items()}
            del self.streams[num_streams:]
            self._written = None
        self.changed.clear()
        self.heartbeats = 0

    def kept(self, key: Key, at: int = -1) -> list[Event]:
        """The events of a stream that are still there."""
        bodies = self.topics.get(key, [])
        base = self.base(key, at)
        end = len(bodies) if at in (-1, len(self.streams) - 1) else self.base(key, at + 1)
        first = max(base, len(bodies) - self.ring)
        return [Event(*key, self.streams[at][0], n + 1 - base, bodies[n]) for n in range(first, end)]

    def answer(self, query: Query) -> Reply:
        encode_query(query)  # must be sendable
        if query.verb == "state":
            return wired_reply(Reply(query.query_id, self.stream_id, self._state(query.run)))
        assert query.run is not None
        key = (query.kind, query.run)
        ids = [stream_id for stream_id, _ in self.streams]
        if query.stream_id is not None and query.stream_id not in ids:
            return wired_reply(Reply(query.query_id, self.stream_id, {"first": 1, "last": 0}))
        at = -1 if query.stream_id is None else ids.index(query.stream_id)
        kept = self.kept(key, at)
        current = at in (-1, len(ids) - 1)
        last = (len(self.topics.get(key, [])) if current else self.base(key, at + 1)) - self.base(key, at)
        events = tuple(event for event in kept if event.seq >= query.from_seq)[: self.reply_events]
        body = {"first": kept[0].seq if kept else last + 1, "last": last}
        return wired_reply(Reply(query.query_id, self.stream_id, body, events))

    def _state(self, run: str | None) -> dict[str, Any]:
        wanted = [key for key in self.topics if run in (None, key[1])]
        numbers = [[*key, len(self.topics[key]) - self.base(key)] for key in wanted]
        alerts = [alert for alert in self.firing.values() if run in (None, alert["run"])]
        state = {
            "numbers": [row for row in numbers if row[2] or self.tell_streams],
            "alerts": alerts,
            "truncated": self.truncated,
        }
        return state | ({"streams": [stream_id for stream_id, _ in self.streams]} if self.tell_streams else {})


def wired(event: Event) -> Event:
    return decode_event(encode_event(event))


def wired_reply(reply: Reply) -> Reply:
    return decode_reply(encode_reply(reply))


def tracker(*kinds: str, run: str | None = None, layers: tuple[str, ...] | None = None) -> StreamTracker:
    return StreamTracker(Wanted(run, layers, kinds or ("alert",)))


def again(subscriber: StreamTracker, *kinds: str) -> StreamTracker:
    """A new life of the subscriber, which dealt with everything that it was given."""
    following = tracker(*kinds)
    following.restore(subscriber.places(), subscriber.complete, set(subscriber.owed))
    return following


def joined(daemon: Daemon, *kinds: str, **wanted: Any) -> StreamTracker:
    """A tracker that has had its state and one heartbeat."""
    subscriber = tracker(*kinds, **wanted)
    settle(daemon, subscriber, subscriber.start())
    settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat()))
    return subscriber


def settle(daemon: Daemon, subscriber: StreamTracker, outcome: Outcome) -> list[Item]:
    """Answer every query until none is left. Returns all the items."""
    items, queries = list(outcome.items), list(outcome.queries)
    for _ in range(1000):
        if not queries:
            return items
        outcome = subscriber.on_reply(daemon.answer(queries.pop(0)))
        items += outcome.items
        queries += outcome.queries
    raise AssertionError("the tracker asks without end")


def drain(daemon: Daemon, subscriber: StreamTracker, wire: list[Event], questions: list[Query]) -> list[Item]:
    """The channel is good again: what is on its way arrives, two heartbeats follow, and all is answered."""
    items: list[Item] = []
    for event in [*wire, daemon.heartbeat(), daemon.heartbeat()]:
        outcome = subscriber.on_event(event)
        items += outcome.items
        questions += outcome.queries
    return items + settle(daemon, subscriber, Outcome(queries=tuple(dict.fromkeys(questions))))


def seqs(items: Any) -> list[int]:
    return [item.seq for item in items]
