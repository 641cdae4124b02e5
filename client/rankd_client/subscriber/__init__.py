"""Follow a daemon's alerts: `for alert in subscribe()`, `async for alert in asubscribe()`. What is yielded, and what is
asked of the daemon, `StreamTracker` decides; `Sockets` moves the bytes; here is only the waiting."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import zmq
import zmq.asyncio

from rankd_client.stream import Gap, Item
from rankd_client.subscriber.request import Request, SubscriptionError, check
from rankd_client.subscriber.sockets import Sockets

__all__ = ["AsyncSubscription", "Gap", "Item", "Subscription", "SubscriptionError", "asubscribe", "subscribe"]


class _Subscription:
    """What both kinds of subscription have in common. Not for use by several threads at once."""

    def __init__(self, request: Request, context: zmq.Context[Any]) -> None:
        self._sockets = Sockets(request, context, time.monotonic)
        self.closed = False

    @property
    def stream_id(self) -> str:
        """The daemon's stream; "" before it was heard."""
        return self._sockets.tracker.stream_id

    @property
    def gaps(self) -> list[Gap]:
        """The newest 1,000 stretches of events that were missed for good, each of which was also logged."""
        return list(self._sockets.tracker.gaps)

    @property
    def num_malformed(self) -> int:
        """Messages, or entries in them, that made no sense and were ignored."""
        return self._sockets.tracker.num_malformed

    @property
    def dropped(self) -> Mapping[str, Any]:
        """The daemon's drop counters, as of its last heartbeat."""
        return self._sockets.tracker.dropped

    def acknowledge(self) -> None:
        """The last item was dealt with: after a restart with `since_last` it does not come again. Asking for the next
        item says the same."""
        self._sockets.acknowledge()

    def close(self) -> None:
        """Close the sockets; the iteration is over. Any number of times."""
        if not self.closed:
            self.closed = True
            self._sockets.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()


class Subscription(_Subscription):
    """An iterator over items; closes itself when its time-out ends it, and as a context manager."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, zmq.Context())
        self._poller = zmq.Poller()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Item:
        sockets = self._sockets
        deadline = sockets.deadline
        if not self.closed:
            sockets.next_asked()
        while not self.closed and not sockets.items:
            try:
                sockets.handle(self._poller.poll(sockets.prepare(self._poller, deadline)))
                if sockets.expired(deadline):
                    self.close()
            except SubscriptionError:
                self.close()
                raise
        if self.closed:
            raise StopIteration
        return sockets.take()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncSubscription(_Subscription):
    """An asynchronous iterator over items; made and used in one running event loop. Closes itself when its time-out
    ends it, when it is cancelled, and as an asynchronous context manager."""

    def __init__(self, request: Request) -> None:
        asyncio.get_running_loop()  # RuntimeError here, rather than sockets that belong to no loop
        super().__init__(request, zmq.asyncio.Context())
        self._poller = zmq.asyncio.Poller()

    def __aiter__(self) -> AsyncSubscription:
        return self

    async def __anext__(self) -> Item:
        sockets = self._sockets
        deadline = sockets.deadline
        try:
            if not self.closed:
                sockets.next_asked()
            while not self.closed and not sockets.items:
                sockets.handle(await self._poller.poll(sockets.prepare(self._poller, deadline)))
                if sockets.expired(deadline):
                    self.close()
        except BaseException:  # cancelled, above all
            self.close()
            raise
        if self.closed:
            raise StopAsyncIteration
        return sockets.take()

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def subscribe(
    endpoint: str | None = None,
    run: str | None = None,
    layers: Sequence[str] | None = None,
    streams: Sequence[str] = ("alert",),
    timeout: float | None = None,
    *,
    severity: str | None = None,
    alerts: str | None = None,
    query: str | None = None,
    key: str | os.PathLike[str] | None = None,
    since_last: str | os.PathLike[str] | None = None,
) -> Subscription:
    """Follow the alerts of a daemon: those that fire now, then every one to come, as `Item`s.

    endpoint: the daemon's URL (default: RANKD_URL, else the user's own); alerts, query: one of its addresses, where it
    is not what follows from the URL. run: only this one (of the key's namespace, unless it is a full name,
    `@NAMESPACE/RUN`). layers: only layers matching one of these globs. streams:
    "alert", "measurement" or both. timeout: seconds without an item after which the iteration ends (None: never;
    heartbeats do not count). severity: only alerts of this one or a worse ("info", "warning", "critical"), and whatever
    follows one that was yielded firing, above all its end. key: a key file (default: RANKD_KEY), for tcp alone.
    since_last: a file that keeps where this subscription is, one for each: started again, it goes on with the item
    after the last one acknowledged.

    Waits for a daemon that is not there yet, and goes on by itself when it restarts. Raises ValueError for arguments
    that cannot be meant and for a file that is damaged or in use, EndpointError (a ValueError) for an address that
    cannot be used or is another user's; while iterating, SubscriptionError (a PermissionError) where the key may not
    subscribe.
    """
    return Subscription(check(endpoint, run, layers, streams, timeout, alerts, query, key, since_last, severity))


def asubscribe(
    endpoint: str | None = None,
    run: str | None = None,
    layers: Sequence[str] | None = None,
    streams: Sequence[str] = ("alert",),
    timeout: float | None = None,
    *,
    severity: str | None = None,
    alerts: str | None = None,
    query: str | None = None,
    key: str | os.PathLike[str] | None = None,
    since_last: str | os.PathLike[str] | None = None,
) -> AsyncSubscription:
    """`subscribe` for `async for`; called where an event loop runs. Cancelling the iteration closes its sockets."""
    return AsyncSubscription(check(endpoint, run, layers, streams, timeout, alerts, query, key, since_last, severity))
