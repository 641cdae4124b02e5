"""A subscriber's two sockets, read and written without blocking, and its clock."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from rankd_client.endpoints import EndpointError, NotThereYet, check_owner, locate
from rankd_client.stream import Item, Outcome, StreamTracker
from rankd_client.subscriber.ledger import Ledger
from rankd_client.subscriber.request import Request, SubscriptionError
from rankd_client.wire import Query, WireError, decode_event, decode_reply, encode_query
from rankd_client.wire.limits import MAX_BODY_BYTES

logger = logging.getLogger("rankd_client")

EVENT_HWM = 1_000
"""Events queued for a slow reader before the daemon drops for it: a second of a busy daemon; more comes by resume."""

REPLY_HWM = 100
"""More than the queries that can be under way."""

OUTBOX_SIZE = 100
"""Queries that wait for a connection; the tracker asks again for whatever fell out."""

MAX_FRAME_BYTES = MAX_BODY_BYTES + 1024
"""What a peer may make libzmq reserve for a frame."""

BATCH_SIZE = 100
"""Messages taken from a socket before the other one has its turn."""

KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 15),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
    (zmq.TCP_MAXRT, 30_000),  # milliseconds: keepalive says nothing while a query waits to be acknowledged
)
"""A host that vanished without a word is noticed by TCP after 30 s, and connected anew. Not by ZeroMQ's heartbeats:
where a peer goes while our queue is full, their timer aborts the process (libzmq 4.3.5, `!_io_error` in
stream_engine_base.cpp)."""

TICK_SECONDS = 1.0

GAP_LOG_SECONDS = 10.0
"""A daemon that drops much must not fill a log: one line this often."""


class Sockets:
    """What sync and async subscriptions share: everything but waiting, which is left to them."""

    def __init__(self, request: Request, context: zmq.Context[Any], clock: Callable[[], float]) -> None:
        self.request = request
        self.context = context
        self.tracker = StreamTracker(request.wanted)
        self.items: deque[Item] = deque()
        self.in_hand: Item | None = None
        """What was taken last and not acknowledged yet."""
        self._ledger: Ledger | None = None
        self._places: dict[str, str] = {}  # of a socket's name: where it is connected
        try:
            if request.since_last is not None:
                self._ledger = Ledger(request.since_last, request.description, self.tracker)
            self.events, self.queries = self._open_events(), self._open_queries()
        except BaseException:
            self.close()
            raise
        self._wide = self._followed = False
        # An asyncio socket's own send and receive return futures; a shadow of it is the same socket without them.
        self._events_io: zmq.Socket[bytes] = zmq.Socket.shadow(self.events)
        self._queries_io: zmq.Socket[bytes] = zmq.Socket.shadow(self.queries)
        self._outbox: dict[int, Query] = {}
        self._clock = clock
        self._ticked_at = clock()
        self._told_place = False
        self._absent = self._told_unanswered = self._told_truncated = False
        self._num_lost, self._lost_logged_at = 0, -math.inf
        self._take(self.tracker.start())

    def _open_events(self) -> zmq.Socket[Any]:
        socket = self._open(zmq.SUB, EVENT_HWM)
        for prefix in self.request.prefixes():
            socket.subscribe(prefix)
        return self._connected(socket, "alerts")

    def _open_queries(self) -> zmq.Socket[Any]:
        socket = self._open(zmq.DEALER, REPLY_HWM)
        socket.set(zmq.IMMEDIATE, 1)  # nothing is queued for nobody; the outbox keeps what is still to be asked
        socket.set(zmq.SNDHWM, OUTBOX_SIZE)
        return self._connected(socket, "query")

    def _open(self, kind: int, hwm: int) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = self.context.socket(kind)
        socket.set(zmq.RCVHWM, hwm)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RECONNECT_IVL, 100)
        socket.set(zmq.RECONNECT_IVL_MAX, 2_000)
        for option, value in KEEPALIVE:
            socket.set(option, value)
        return socket

    def _connected(self, socket: zmq.Socket[Any], name: str) -> zmq.Socket[Any]:
        """The socket, connected to where the daemon is now: a discovery file may say another address each time, or be
        missing yet. Raises EndpointError."""
        try:
            address = locate(getattr(self.request, name), name)
        except NotThereYet:
            return socket
        former = self._places.get(name)
        if address == former:
            return socket
        check_owner(address)
        if former is not None:
            with contextlib.suppress(zmq.ZMQError):  # its host may have no address any more
                socket.disconnect(former)
        if self.request.key is not None:
            self.request.key.apply(socket, address)
        socket.set(zmq.IPV6, int("[" in address))
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise EndpointError(f"{address!r}: {error.strerror}; expected ipc://PATH or tcp://HOST:PORT") from None
        self._places[name] = address
        return socket

    def _look_again(self) -> None:
        """Where nobody is heard, the daemon may be in another place by now."""
        try:
            self._connected(self.events, "alerts")
            self._connected(self.queries, "query")
        except EndpointError as error:
            if not self._told_place:
                logger.warning("not connecting: %s", error)
            self._told_place = True

    @property
    def deadline(self) -> float:
        """When the time without an item is over that begins now."""
        return math.inf if self.request.timeout is None else self._clock() + self.request.timeout

    def expired(self, deadline: float) -> bool:
        return not self.items and self._clock() >= deadline

    def prepare(self, poller: zmq.Poller, deadline: float) -> int:
        """Register what to wait for. Returns for how many milliseconds."""
        poller.register(self.events, zmq.POLLIN)
        poller.register(self.queries, zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0))
        until = min(deadline, self._ticked_at + TICK_SECONDS)
        return max(0, math.ceil(1000 * (until - self._clock())))

    def take(self) -> Item:
        """The next item, which is outstanding until it is acknowledged."""
        self.in_hand = self.items.popleft()
        return self.in_hand

    def acknowledge(self, write: bool = True) -> None:
        item, self.in_hand = self.in_hand, None
        if item is not None and self._ledger is not None:
            self._ledger.settle(item, write)

    def next_asked(self) -> None:
        """Whoever asks for the next item has dealt with the one before. Alerts are few, and written down one by one."""
        self.acknowledge(write=self.in_hand is not None and self.in_hand.stream == "alert")

    def _refresh(self) -> None:
        if self._ledger is not None:
            self._ledger.refresh([*([] if self.in_hand is None else [self.in_hand]), *self.items])

    def handle(self, ready: Iterable[tuple[Any, int]]) -> None:
        """Read and write what is ready; then, with all answers read, let the tracker's second pass if it has. Raises
        SubscriptionError where the daemon tells us nothing."""
        flags = dict(ready)
        if flags.get(self.events, 0) & zmq.POLLIN:
            self._receive(self._events_io, lambda frames: self._take(self.tracker.on_event(decode_event(frames))))
        if flags.get(self.queries, 0) & zmq.POLLIN:
            self._receive(self._queries_io, lambda frames: self._take(self.tracker.on_reply(decode_reply(frames))))
        if flags.get(self.queries, 0) & zmq.POLLOUT:
            self._send()
        if (now := self._clock()) - self._ticked_at >= TICK_SECONDS:
            self._ticked_at = now
            self._take(self.tracker.on_tick())
            self._refresh()
            if self.tracker.absent or len(self._places) < 2:
                self._look_again()
        if self.tracker.refused and not self.items:
            raise SubscriptionError(self.request.refusal(self.tracker.refused))

    def _receive(self, socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None]) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(BATCH_SIZE):
                frames = socket.recv_multipart(zmq.NOBLOCK)
                try:
                    on_frames(frames)
                except WireError:
                    self.tracker.on_malformed()

    def _send(self) -> None:
        with contextlib.suppress(zmq.Again):
            while self._outbox:
                query_id, query = next(iter(self._outbox.items()))
                self._queries_io.send_multipart(encode_query(query), zmq.NOBLOCK)
                del self._outbox[query_id]

    def _take(self, outcome: Outcome) -> None:
        self.items.extend(outcome.items)
        for query in outcome.queries:
            self._outbox[query.query_id] = query
        while len(self._outbox) > OUTBOX_SIZE:
            del self._outbox[next(iter(self._outbox))]
        if self.tracker.followed and not self._followed:
            self._followed = True
            self._refresh()  # from here on nothing may be missed, even if nothing comes before we end
        if self.tracker.everybody and not self._wide:
            self._wide = True
            for prefix in self.request.prefixes(everybody=True):
                self.events.subscribe(prefix)
        self._report(outcome)

    def _report(self, outcome: Outcome) -> None:
        tracker = self.tracker
        if tracker.absent != self._absent:
            self._absent = tracker.absent
            if self._absent:
                logger.warning("no daemon is heard at %s; waiting for it", self.request.alerts)
            else:
                logger.info("the daemon at %s is back", self.request.alerts)
        if tracker.num_unanswered and not self._told_unanswered:
            self._told_unanswered = True
            logger.warning("the daemon at %s does not answer; what is missed now is lost", self.request.query)
        if tracker.truncated and not self._told_truncated:
            self._told_truncated = True
            logger.warning("the daemon at %s has more alerts firing than it could list", self.request.query)
        self._num_lost += sum(gap.num_events for gap in outcome.gaps)
        if self._num_lost and self._clock() - self._lost_logged_at >= GAP_LOG_SECONDS:
            self._lost_logged_at = self._clock()
            logger.warning(
                "missed %d events that the daemon at %s no longer has; the last: %s",
                self._num_lost,
                self.request.alerts,
                tracker.gaps[-1],
            )
            self._num_lost = 0

    def close(self) -> None:
        if self._ledger is not None:
            self._refresh()
            self._ledger.close()
        self.context.destroy(linger=0)
