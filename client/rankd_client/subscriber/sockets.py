"""What goes between a subscriber's connections and its tracker, and its clock."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from rankd_client.stream import Item, Outcome, StreamTracker
from rankd_client.subscriber.connections import OUTBOX_SIZE, Connections
from rankd_client.subscriber.door import Door
from rankd_client.subscriber.ledger import Ledger
from rankd_client.subscriber.request import Request, SubscriptionError
from rankd_client.wire import Query, WireError, decode_event, decode_reply, encode_query

logger = logging.getLogger("rankd_client")

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
        try:
            if request.since_last is not None:
                self._ledger = Ledger(request.since_last, request.description, self.tracker)
            self.connections = Connections(request, context)
        except BaseException:
            self.close()
            raise
        self._door = Door(request.key)
        self._followed = False
        self._outbox: dict[int, Query] = {}
        self._clock = clock
        self._ticked_at = clock()
        self._absent = self._told_unanswered = self._told_truncated = False
        self._num_lost, self._lost_logged_at = 0, -math.inf
        self._take(self.tracker.start())

    @property
    def deadline(self) -> float:
        """When the time without an item is over that begins now."""
        return math.inf if self.request.timeout is None else self._clock() + self.request.timeout

    def expired(self, deadline: float) -> bool:
        """Raises SubscriptionError where the time is over before it is sure that the daemon refuses us."""
        if self.items or self._clock() < deadline:
            return False
        if self._door.suspicion:
            raise SubscriptionError(self._door.suspicion)
        return True

    def prepare(self, poller: zmq.Poller, deadline: float) -> int:
        """Register what to wait for. Returns for how many milliseconds."""
        self.connections.register(poller, to_send=bool(self._outbox))
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
        flags, connections = dict(ready), self.connections
        if flags.get(connections.events, 0) & zmq.POLLIN:
            connections.receive_events(self._on_event)
        if flags.get(connections.queries, 0) & zmq.POLLIN:
            connections.receive_replies(self._on_reply)
        if flags.get(connections.queries, 0) & zmq.POLLOUT:
            self._send()
        if (now := self._clock()) - self._ticked_at >= TICK_SECONDS:
            self._ticked_at = now
            self._take(self.tracker.on_tick())
            self._refresh()
            self._on_absence()
        if self.tracker.refused and not self.items:
            raise SubscriptionError(self.request.refusal(self.tracker.refused))
        if self._door.refusal and not self.items:
            raise SubscriptionError(self._door.refusal)

    def _on_absence(self) -> None:
        """If it is one: the daemon may be in another place by now, or not let us in."""
        connections, absent = self.connections, self.tracker.absent
        if self._door.on_tick(absent, connections.let_in, connections.query_address):
            connections.open_anew()
        elif absent or not connections.complete:
            connections.look_again()

    def _on_event(self, frames: list[bytes]) -> None:
        try:
            self._take(self.tracker.on_event(decode_event(frames)))
        except WireError:
            self.tracker.on_malformed()

    def _on_reply(self, frames: list[bytes]) -> None:
        try:
            self._take(self.tracker.on_reply(decode_reply(frames)))
        except WireError:
            self.tracker.on_malformed()

    def _send(self) -> None:
        for query_id, query in list(self._outbox.items()):
            if not self.connections.send(encode_query(query)):
                return
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
        if self.tracker.everybody:
            self.connections.widen()
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
