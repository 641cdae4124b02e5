"""A small publisher with real sockets, which numbers, keeps and answers as a daemon does, and subscriptions to it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any

import zmq

from rankd_client.subscriber import Subscription, subscribe
from rankd_client.wire import Event, Query, Reply, decode_query, encode_event, encode_reply

STREAM, OTHER = "00000000000000aa", "00000000000000bb"
TIMEOUT = 30.0
"""Seconds after which a test that hangs fails; no test takes that long when it passes."""


class Publisher:
    """XPUB and ROUTER in a thread of their own. A heartbeat every 20 ms, so that no test waits for one."""

    def __init__(
        self, alerts: str, query: str, stream_id: str = STREAM, events: list[Event] | None = None, hwm: int = 1000
    ) -> None:
        self.stream_id, self.events = stream_id, events if events is not None else []
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._context = zmq.Context()
        self._xpub, self._router = self._context.socket(zmq.XPUB), self._context.socket(zmq.ROUTER)
        for socket, address in ((self._xpub, alerts), (self._router, query)):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SNDHWM, hwm)
            socket.bind(address)
        self.alerts, self.query = self._xpub.last_endpoint.decode(), self._router.last_endpoint.decode()
        self._heartbeats = self.num_forgotten = 0
        self.error = ""
        """With which every query is refused."""
        self._told = len(self.events)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._xpub, zmq.POLLIN)  # subscriptions take effect when they are read
        while True:
            for socket, _ in poller.poll(20):
                frames = socket.recv_multipart()
                if socket is self._router:
                    self._router.send_multipart([frames[0], *encode_reply(self._answer(decode_query(frames[1:])))])
            while not self._commands.empty():
                if (command := self._commands.get()) is None:
                    return
                command()
            self._heartbeat()

    def _heartbeat(self) -> None:
        self._heartbeats += 1
        numbers = {(event.kind, event.run): event.seq for event in self.events[self._told :]}
        self._told = len(self.events)
        body = {"numbers": [[*key, seq] for key, seq in numbers.items()], "dropped": {"dropped_events": 0}}
        self._xpub.send_multipart(encode_event(Event("heartbeat", "", self.stream_id, self._heartbeats, body)))

    def _answer(self, query: Query) -> Reply:
        if self.error:
            return Reply(query.query_id, self.stream_id, error=self.error)
        if query.verb == "state":
            numbers = {(event.kind, event.run): event.seq for event in self.events}
            alerts = {event.body["alert_id"]: event.body for event in self.events if event.kind == "alert"}
            firing = [alert for alert in alerts.values() if alert["state"] == "firing"]
            return Reply(
                query.query_id,
                self.stream_id,
                {"numbers": [[*key, seq] for key, seq in numbers.items()], "alerts": firing, "truncated": False},
            )
        if query.stream_id not in (None, self.stream_id):
            return Reply(query.query_id, self.stream_id, {"first": 1, "last": 0})
        own = [event for event in self.events if (event.kind, event.run) == (query.kind, query.run)]
        events = tuple(event for event in own[self.num_forgotten :] if event.seq >= query.from_seq)[:1000]
        return Reply(query.query_id, self.stream_id, {"first": self.num_forgotten + 1, "last": len(own)}, events)

    def forget(self) -> None:
        """Keep none of the measurements so far."""
        self.num_forgotten = sum(event.kind == "measurement" for event in self.events)

    def call(self, command: Callable[[], None]) -> None:
        """Run it in the publisher's thread and wait until it is done."""
        done = threading.Event()
        self._commands.put(lambda: (command(), done.set())[0])
        assert done.wait(TIMEOUT)

    def publish(self, run: str = "r", kind: str = "alert", lost: bool = False, **body: Any) -> None:
        self.call(lambda: self._publish(run, kind, lost, body))

    def _publish(self, run: str, kind: str, lost: bool, body: dict[str, Any]) -> None:
        seq = 1 + sum((event.kind, event.run) == (kind, run) for event in self.events)
        common = {"alert_id": f"{self.stream_id}-{run}-{seq}", "state": "firing", "layer": "a", "run": run}
        body = {**common, "stream_id": self.stream_id, "seq": seq, **body}
        self.events.append(Event(kind, run, self.stream_id, seq, body))
        if not lost:
            self._xpub.send_multipart(encode_event(self.events[-1]))

    def send(self, *frames: bytes) -> None:
        self.call(lambda: self._xpub.send_multipart(list(frames)))

    def close(self) -> None:
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(TIMEOUT)
            self._context.destroy(linger=0)


def follow(publisher: Publisher, timeout: float | None = TIMEOUT, **options: Any) -> Subscription:
    return subscribe(alerts=publisher.alerts, query=publisher.query, timeout=timeout, **options)


def joined(publisher: Publisher, **options: Any) -> Subscription:
    """Both streams, followed from behind a first alert on."""
    publisher.publish(layer="b")
    subscription = follow(publisher, streams=("alert", "measurement"), **options)
    assert next(subscription).seq == 1
    return subscription


def seqs(items: Any, count: int) -> list[int]:
    return [item.seq for item in itertools.islice(items, count)]
