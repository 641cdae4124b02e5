"""Hand alerts to something else (a pager, a webhook, a file), each at least once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

from rankd_client.stream import Item
from rankd_client.subscriber import Subscription, subscribe

logger = logging.getLogger("rankd_client")

Sink = Callable[[Item], object]

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
"""A pager that is away for an hour is asked some sixty times, and the alerts wait in the daemon meanwhile."""


def on_alert(
    sink: Sink,
    endpoint: str | None = None,
    run: str | None = None,
    layers: Sequence[str] | None = None,
    timeout: float | None = None,
    *,
    severity: str | None = None,
    since_last: str | os.PathLike[str] | None = None,
    alerts: str | None = None,
    query: str | None = None,
    key: str | os.PathLike[str] | None = None,
) -> None:
    """Call `sink(alert)` for every alert of a daemon, in order, at least once; arguments as for `subscribe`.

    Returning acknowledges the alert. While the sink raises an Exception it is called again with the same alert, after
    1, 2, 4, … at most 60 seconds. With `since_last` all this holds over restarts of this process too: one that ended
    between the sink's return and the acknowledgement repeats that alert. `(alert["alert_id"], alert["state"])` is the
    same each time: whoever must not act twice keeps it. Runs until `timeout`, or an exception that is no Exception.
    """
    with subscribe(
        endpoint,
        run,
        layers,
        timeout=timeout,
        severity=severity,
        alerts=alerts,
        query=query,
        key=key,
        since_last=since_last,
    ) as items:
        deliver_all(items, sink)


def deliver_all(items: Subscription, sink: Sink, sleep: Callable[[float], None] = time.sleep) -> None:
    """`on_alert` for a subscription that is there already."""
    for item in items:
        deliver(item, sink, sleep)
        items.acknowledge()


def deliver(item: Item, sink: Sink, sleep: Callable[[float], None] = time.sleep) -> None:
    """Call `sink(item)` until it returns. Logs the first failure and the end of the failures."""
    wait_seconds, num_failures = FIRST_RETRY_SECONDS, 0
    while True:
        try:
            sink(item)
        except Exception as error:
            num_failures += 1
            if num_failures == 1:
                logger.warning("the sink did not take alert %s: %r; trying again", _name(item), error)
            sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, MAX_RETRY_SECONDS)
        else:
            if num_failures:
                logger.info("the sink took alert %s after %d failures", _name(item), num_failures)
            return


def _name(item: Item) -> str:
    return ascii(item.get("alert_id"))[:80]
