"""Answers that nobody waits for are taken together: here after so long that only what ends the wait may be why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from link_ends import DOOR, MIB, PATIENCE_SECONDS, ArenaDoor, Router, Setup, lendable

from rankd_client.link import loop
from rankd_client.wire import LOCAL_VERSION, Ack, Heartbeat

SHORT_SECONDS = 0.2


@pytest.fixture(autouse=True)
def _for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_GATHER_SECONDS", 6 * PATIENCE_SECONDS)


@pytest.fixture
def setup(address: str) -> Iterator[Setup]:
    setup = Setup(address, 8 * MIB, newest=LOCAL_VERSION, allocate=lendable)
    yield setup
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    assert not setup.link._thread.is_alive()


def sent(router: Router, setup: Setup, layer: str) -> None:
    setup.put(layer, 1)
    assert router.chunk().layer == layer
    time.sleep(SHORT_SECONDS)  # what the link is still woken by has passed


def lent(router: Router, setup: Setup, door: ArenaDoor, num_bytes: int) -> None:
    router.welcome(**DOOR)
    door.take()
    setup.until(lambda: setup.link.path == "memfd")
    setup.put("a", 1, num_bytes)
    while (part := router.lent()).chunk.offset + part.num_bytes < num_bytes:
        pass
    time.sleep(SHORT_SECONDS)


def test_they_wait_until_there_is_more_to_send(router: Router, setup: Setup) -> None:
    router.welcome()
    sent(router, setup, "a")
    router.send(Heartbeat(), Ack("recorded", "a", 1))
    time.sleep(SHORT_SECONDS)
    assert not setup.outbox.settled
    setup.put("b", 2)
    setup.until(lambda: not setup.outbox._awaiting or "a" not in {layer for layer, _ in setup.outbox._awaiting})


def test_or_until_somebody_waits_for_them(router: Router, setup: Setup) -> None:
    router.welcome()
    sent(router, setup, "a")
    router.send(Heartbeat(), Ack("recorded", "a", 1))
    time.sleep(SHORT_SECONDS)
    assert setup.outbox.wait_settled(PATIENCE_SECONDS, setup.link.wake)


def test_they_do_not_while_somebody_waits(router: Router, setup: Setup) -> None:
    router.welcome()
    sent(router, setup, "a")
    found, begun = list[bool](), threading.Event()
    waiting = threading.Thread(target=lambda: found.append(setup.outbox.wait_settled(PATIENCE_SECONDS, begun.set)))
    waiting.start()
    assert begun.wait(PATIENCE_SECONDS)
    router.send(Ack("recorded", "a", 1))
    waiting.join()
    assert found == [True]


@pytest.mark.parametrize(("num_bytes", "waits"), [(5 * MIB, False), (2 * MIB, True)])
def test_they_do_not_where_the_next_push_needs_what_is_lent(
    num_bytes: int, waits: bool, router: Router, setup: Setup, door: ArenaDoor
) -> None:
    """Of 8 MiB."""
    lent(router, setup, door, num_bytes)
    router.send(Heartbeat(), Ack("received", "a", 1, credit_bytes=num_bytes))
    if waits:
        time.sleep(SHORT_SECONDS)
        assert setup.link._talk.flow.lent_bytes == num_bytes
    else:
        setup.until(lambda: setup.link._talk.flow.lent_bytes == 0)


def test_they_do_not_while_the_link_ends(router: Router, setup: Setup, door: ArenaDoor) -> None:
    lent(router, setup, door, 2 * MIB)
    setup.link.stop(2 * PATIENCE_SECONDS)
    router.send(Heartbeat(), Ack("received", "a", 1, credit_bytes=2 * MIB))
    setup.link.join(PATIENCE_SECONDS)
    assert not setup.link._thread.is_alive()
