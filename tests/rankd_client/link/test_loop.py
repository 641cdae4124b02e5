"""A link from its start to its end: daemons that come, fall silent, leave and come back."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from link_ends import MIB, PATIENCE_SECONDS, Router, Setup

from rankd_client.link import conversation, loop
from rankd_client.wire import MIN_CHUNK_BYTES, Ack, Bye, Chunk, Heartbeat, Hello, Refusal, Welcome


def test_a_daemon_that_came_back_gets_everything_again(address: str, setup: Setup) -> None:
    first = Router(address)
    content = setup.put("whole", 1)
    setup.put("part", 2, 12 * MIB)
    first.welcome(credit_bytes=32 + 5 * MIB, heartbeat_seconds=0.5)
    assert first.chunk().layer == "whole"
    assert first.chunk().layer == "part"
    first.close()
    second = Router(address)  # hears a heartbeat or a chunk of somebody who has not greeted it, or a hello
    setup.put("new", 3)
    hello = second.receive(beats=True)
    if not isinstance(hello, Hello):
        second.send(Refusal("no_hello", ""))
        hello = second.receive()
    assert hello == setup.hello
    second.send(Welcome("11" * 8, 64 * MIB, MIN_CHUNK_BYTES, 60.0))
    chunks = [second.chunk() for _ in range(5)]
    assert [(chunk.layer, chunk.offset // MIB) for chunk in chunks] == [
        ("whole", 0),
        ("part", 0),
        ("part", 4),
        ("part", 8),
        ("new", 0),
    ]
    assert bytes(chunks[0].payload) == content
    second.close()


def test_silence_makes_a_new_connection(router: Router, setup: Setup) -> None:
    router.welcome(heartbeat_seconds=0.05)
    first = router.peer
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    router.welcome()  # after three intervals of nothing
    assert router.peer != first
    assert router.chunk().layer == "a"


def test_both_sides_beat(router: Router, setup: Setup) -> None:
    router.welcome(heartbeat_seconds=0.2)
    for _ in range(5):  # longer than silence would be allowed
        assert isinstance(router.receive(beats=True), Heartbeat)
        router.send(Heartbeat())
    assert setup.link.connected


def test_a_daemon_that_does_not_answer_is_asked_again(
    router: Router, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.link._talk.hello_seconds = 0.1
    hello = router.receive()
    assert isinstance(hello, Hello) and router.welcome() == hello


def test_a_refused_connection_is_tried_again_ever_more_rarely(router: Router, setup: Setup) -> None:
    for _ in range(3):
        assert isinstance(router.receive(), Hello)
        router.send(Refusal("too_many_connections", "full"))
    assert isinstance(router.receive(), Hello)
    assert setup.link._talk.retry_seconds == pytest.approx(conversation.RETRY_SECONDS * 8)


def test_stop_sends_what_is_pending_and_says_bye(router: Router, setup: Setup) -> None:
    router.welcome()
    for layer in range(50):
        setup.put(f"layer {layer}", 1)
    setup.link.stop(PATIENCE_SECONDS)
    layers = []
    while isinstance(message := router.receive(), Chunk):
        layers.append(message.layer)
        router.send(Ack("received", message.layer, 1, credit_bytes=len(message.payload)))
    assert layers == [f"layer {layer}" for layer in range(50)]
    assert isinstance(message, Bye)


def test_stop_right_after_the_start_waits_for_the_first_attempt(router: Router, setup: Setup) -> None:
    setup.put("a", 1)
    setup.link.stop(PATIENCE_SECONDS)
    router.welcome()
    router.send(Ack("received", "a", 1, credit_bytes=len(router.chunk().payload)))
    assert isinstance(router.receive(), Bye)


def test_bye_of_the_daemon_is_told_and_it_is_greeted_when_it_is_back(
    router: Router, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    router.welcome()
    router.send(Bye())
    router.welcome()
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "has ended; training goes on" in lines[0] and "connected to" in lines[1]


def test_an_absent_daemon_is_told_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(address)
    for step in range(20):
        setup.put("a", step)
    setup.link.stop(0.5)
    setup.link.join(PATIENCE_SECONDS)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no daemon is there yet; training goes on" in caplog.text
    assert setup.outbox.num_replaced == 19


def test_a_fault_that_comes_again_at_once_is_told_once_and_keeps_no_core_busy(
    address: str, setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses, enough = list[float](), threading.Event()
    resting = time.sleep

    def sleep(seconds: float) -> None:
        if threading.current_thread() is setup.link._thread:
            pauses.append(seconds)
            if len(pauses) == 3:
                enough.set()
        resting(min(seconds, 0.01))

    def fail(now: float) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(loop.time, "sleep", sleep)
    monkeypatch.setattr(setup.link._talk, "advance", fail)
    setup.link.wake()
    assert enough.wait(PATIENCE_SECONDS) and set(pauses) == {loop._FAULT_SECONDS}
    assert sum("ours" in line for line in caplog.messages) == 1
    monkeypatch.undo()
    router = Router(address)
    router.welcome()  # and it goes on
    router.close()
