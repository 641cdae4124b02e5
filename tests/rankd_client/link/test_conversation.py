"""A conversation by itself, without its thread: it is told what a daemon says, whose socket is there."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import zmq
from link_ends import MIB, PATIENCE_SECONDS, Router

from rankd_client.arena import Arena, Memory
from rankd_client.console import LOG_SECONDS, FaultLog
from rankd_client.link.conversation import Conversation
from rankd_client.link.handshake import Handshake
from rankd_client.outbox import Outbox
from rankd_client.wire import LOCAL_VERSION, Heartbeat, Hello, Refusal, Welcome


@pytest.fixture
def talk(address: str, router: Router) -> Iterator[Conversation]:
    """One that was just welcomed."""
    outbox = Outbox(Arena(MIB, lambda size: Memory(memoryview(bytearray(size)))))
    handshake = Handshake(Hello("run", bytes(16)), LOCAL_VERSION)
    talk = Conversation(address, handshake, outbox, lambda alert: None, None, FaultLog(address), lambda: None)
    assert talk.dealer.open() and writable(talk, PATIENCE_SECONDS)
    assert talk._say_hello(0.0)
    talk._handle(Welcome("00" * 8, MIB, 4 * MIB, 1.0, LOCAL_VERSION))
    assert talk.state == "ready"
    yield talk
    talk.end(0.0)


def writable(talk: Conversation, seconds: float) -> bool:
    assert talk.dealer._socket is not None
    return bool(talk.dealer._socket.poll(int(1000 * seconds), zmq.POLLOUT))


def fill(talk: Conversation) -> None:
    """Until nothing more goes, because nobody reads it."""
    while writable(talk, 0.05):
        talk.dealer.send(Heartbeat())


@pytest.mark.parametrize("code", ["loan_ended", "not_lent", "no_hello"])
def test_a_hello_that_cannot_be_said_again_is_said_on_another_connection(talk: Conversation, code: str) -> None:
    fill(talk)
    talk._handle(Refusal(code, "", *(() if code == "no_hello" else ("a", 1))))
    assert talk.state == "closed" and talk.dealer._socket is None
    assert not talk._is_recovering  # what the next connection refuses is refused for good


def test_where_there_is_room_it_is_said_on_the_same_one(talk: Conversation, router: Router) -> None:
    talk._handle(Refusal("loan_ended", "", "a", 1))
    assert talk.state == "hello" and talk._is_recovering
    assert [router.receive(), router.receive()] == 2 * [talk.handshake.hello]


def test_an_outage_that_came_too_soon_to_be_told_is_told_by_time_alone(
    talk: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    talk._faults._clock = lambda: now
    for why in ("first", "second"):
        talk._faults.up()
        talk._faults.down(why)
    talk.close(3600.0)
    talk.advance(time.monotonic())
    assert "first;" in caplog.text and "second;" not in caplog.text
    now = LOG_SECONDS
    talk.advance(time.monotonic())
    assert "second;" in caplog.text
