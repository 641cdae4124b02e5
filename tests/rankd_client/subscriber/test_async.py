"""Subscriptions in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from publisher import OTHER, TIMEOUT, Publisher

from rankd_client.subscriber import asubscribe


async def test_async_items_and_time_out(publisher: Publisher) -> None:
    publisher.publish()
    alerts = asubscribe(alerts=publisher.alerts, query=publisher.query, timeout=2.0)
    assert [(item.stream, item.seq) async for item in alerts] == [("alert", 1)]
    assert alerts.closed


async def test_async_goes_on_when_the_daemon_restarts(publishers: Callable[..., Publisher]) -> None:
    old = publishers()
    old.publish()
    async with asubscribe(alerts=old.alerts, query=old.query, timeout=TIMEOUT) as alerts:
        assert (await anext(alerts)).seq == 1
        await asyncio.to_thread(old.close)
        new = await asyncio.to_thread(publishers, old.alerts, old.query, stream_id=OTHER)
        new.publish(lost=True)
        new.publish()
        assert [(await anext(alerts)).seq, (await anext(alerts)).seq] == [1, 2]
    assert alerts.closed


async def test_cancelling_closes_the_sockets(tmp_path: Path) -> None:
    alerts = asubscribe(f"ipc://{tmp_path}")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(alerts), 0.05)
    assert alerts.closed and alerts._sockets.context.closed
    assert [item async for item in alerts] == []


async def test_others_run_while_one_waits(publisher: Publisher) -> None:
    async def soon() -> None:
        await asyncio.sleep(0)
        publisher.publish()

    async with asubscribe(alerts=publisher.alerts, query=publisher.query, timeout=TIMEOUT) as alerts:
        item, _ = await asyncio.gather(anext(alerts), soon())
    assert item.seq == 1


def test_asubscribe_needs_a_running_loop(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        asubscribe(f"ipc://{tmp_path}")
