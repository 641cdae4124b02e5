"""The stream: events out on XPUB, and a heartbeat that tells subscribers what they should have seen."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

import zmq.asyncio

from rankd.sockets import let_others_run, send_now
from rankd_client.wire import Event, encode_event

log = logging.getLogger("rankd.publish")


class Publish:
    """Sends and never waits: XPUB drops for a subscriber that does not read; the numbers show it what it missed."""

    def __init__(
        self, socket: zmq.asyncio.Socket, stream_id: str, clock: Callable[[], float], counters: Counter[str]
    ) -> None:
        self.socket = socket
        self.stream_id = stream_id
        self.clock = clock
        self.counters = counters
        self._changed: dict[tuple[str, str], int] = {}
        self._num_heartbeats = 0

    def __call__(self, events: Iterable[Event]) -> None:
        for event in events:
            self._changed[event.kind, event.run] = event.seq
            self._send(event)

    def heartbeat(self, state: str = "serving") -> None:
        """Numbers changed since the last one, and what was dropped so far. `state` is "serving" or "stopping"."""
        body = {
            "numbers": [[kind, run, seq] for (kind, run), seq in self._changed.items()],
            "dropped": {name: n for name, n in self.counters.items() if name.startswith("dropped_")},
            "time": self.clock(),
            "state": state,
        }
        self._changed.clear()
        self._num_heartbeats += 1
        self._send(Event("heartbeat", "", self.stream_id, self._num_heartbeats, body))

    async def watch_subscriptions(self) -> None:
        """XPUB hands us every (un)subscription; read them so that they do not pile up."""
        while True:
            await let_others_run()
            topic = await self.socket.recv()
            self.counters["num_subscribed" if topic[:1] == b"\1" else "num_unsubscribed"] += 1

    def _send(self, event: Event) -> None:
        if not send_now(self.socket, encode_event(event)):
            self.counters["dropped_events"] += 1
