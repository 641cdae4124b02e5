"""The stream: events out on XPUB, and a heartbeat that tells subscribers what they should have seen."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

import zmq
import zmq.asyncio

from rankd.door import Door
from rankd.namespaces import namespace_of
from rankd.sockets import let_others_run, send_now
from rankd.streams import Streams
from rankd_client.wire import Event, encode_event

log = logging.getLogger("rankd.publish")

SUBSCRIBE, UNSUBSCRIBE = b"\1", b"\0"
MAX_REFUSALS_LOGGED = 100


class Publish:
    """Sends and never waits: XPUB drops for a subscriber that does not read; the numbers show it what it missed.

    `socket` is an XPUB with XPUB_MANUAL: a subscription holds once it was allowed.
    """

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        streams: Streams,
        clock: Callable[[], float],
        counters: Counter[str],
        door: Door,
    ) -> None:
        self.socket = socket
        self.streams = streams
        self.clock = clock
        self.counters = counters
        self.door = door
        self._changed: dict[tuple[str, str], int] = {}
        self._namespaces: set[str] = {""}
        self._num_heartbeats = 0

    def __call__(self, events: Iterable[Event]) -> None:
        for event in events:
            self._changed[event.kind, event.run] = event.seq
            self._namespaces.add(namespace_of(event.run))
            self._send(encode_event(event))

    def heartbeat(self, state: str = "serving") -> None:
        """Numbers changed since the last one, each told in its namespace alone, and what was dropped so far. `state` is
        "serving" or "stopping"."""
        self._num_heartbeats += 1
        numbers: dict[str, list[list[object]]] = {namespace: [] for namespace in self._namespaces}
        for (kind, run), seq in self._changed.items():
            numbers[namespace_of(run)].append([kind, run, seq])
        self._changed.clear()
        dropped = {name: n for name, n in self.counters.items() if name.startswith("dropped_")}
        for namespace, entries in numbers.items():
            # What was dropped is of all together: not for those who see one namespace.
            counts = {} if namespace else dropped
            body = {"numbers": entries, "dropped": counts, "time": self.clock(), "state": state}
            about = f"@{namespace}" if namespace else ""
            self._send(encode_event(Event("heartbeat", about, self.streams.stream_id, self._num_heartbeats, body)))

    async def watch_subscriptions(self) -> None:
        """XPUB hands us every (un)subscription; one that its sender has a right to begins to hold."""
        while True:
            await let_others_run()
            frame = await self.socket.recv(copy=False)
            source = self.door.enter([frame])
            kind, topic = frame.bytes[:1], frame.bytes[1:]
            if kind == UNSUBSCRIBE:
                self.counters["num_unsubscribed"] += 1
                self.socket.setsockopt(zmq.UNSUBSCRIBE, topic)
            elif kind == SUBSCRIBE and source.grant is not None and source.grant.covers_topic(topic):
                self.counters["num_subscribed"] += 1
                self._namespaces.add(source.grant.namespace)
                self.socket.setsockopt(zmq.SUBSCRIBE, topic)
            else:
                self.counters["num_refused_not_allowed"] += 1
                if self.counters["num_refused_not_allowed"] <= MAX_REFUSALS_LOGGED:
                    name = None if source.grant is None else source.grant.name
                    log.warning("refused subscription key=%r topic=%r", name, topic[:100])
                if source.grant is None:
                    self.door.cut(source, "not_allowed")

    def _send(self, frames: list[bytes]) -> None:
        if not send_now(self.socket, frames):
            self.counters["dropped_events"] += 1
