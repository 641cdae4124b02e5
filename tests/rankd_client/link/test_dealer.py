"""The socket of a link: whom it connects to, and what it takes from there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import zmq
from link_ends import MIB, PATIENCE_SECONDS, Router, Setup

from rankd_client.link import dealer
from rankd_client.wire import MIN_CHUNK_BYTES, Ack, Bye, Chunk, Hello, Refusal, Welcome, encode

GARBAGE = [
    (b"",),
    (b"\x00" * 100,),
    (b"\xff" * 1000,),
    (b"\x81\xa1t\xa7welcome",),
    (b"\x81\xa1t\xa7welcome", b"payload"),
    tuple(b"x" for _ in range(50)),
    tuple(bytes(frame) for frame in encode(Chunk("a", 1, "bfloat16", (2, 2), 8, 0, b"12345678"))),
    tuple(bytes(frame) for frame in encode(Hello("run", bytes(16)))),
]


def test_garbage_is_counted_and_nothing_else(router: Router, setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    router.welcome()
    for frames in GARBAGE:
        router.send_raw(*frames)
    router.send(Ack("recorded", "no such layer", 9), Ack("received", "none", 1, credit_bytes=(1 << 63) - 1))
    router.send(Refusal("brand_new_code", "", "no such layer", 9))
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    router.send(Ack("recorded", "a", 1))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    assert setup.link.num_wire_errors == len(GARBAGE)
    assert len([record for record in caplog.records if "no message of this protocol" in record.getMessage()]) == 1


def test_a_frame_too_large_ends_the_connection_not_the_link(router: Router, setup: Setup) -> None:
    router.welcome(heartbeat_seconds=0.3)
    router.send_raw(bytes(dealer.MAX_MESSAGE_BYTES + 1))
    setup.put("a", 1)
    message = router.receive(beats=True)
    while not isinstance(message, Hello):
        message = router.receive(beats=True)
    router.send(Welcome("00" * 8, MIB, MIN_CHUNK_BYTES, 60.0))
    assert router.chunk().layer == "a"


def test_vanished_hosts_are_noticed_by_tcp_and_not_by_heartbeats_that_abort_the_process(address: str) -> None:
    """libzmq's own heartbeats run into an assertion where a peer goes while our queue is full."""
    router, socket_ = Router(address), dealer.Dealer(address)
    assert socket_.open() and socket_._socket is not None
    assert socket_._socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
    assert socket_._socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
    socket_.end(0.0)
    router.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_weights_are_not_sent_into_a_directory_of_somebody_else(
    address: str, router: Router, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(tmp_path, 12345, 12345)
    setup = Setup(address)
    setup.put("a", 1)
    assert router.silent(0.3)
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    (record,) = caplog.records
    assert "belongs to user id 12345" in record.getMessage()


def test_a_daemon_is_looked_up_anew_at_each_connection(tmp_path: Path) -> None:
    """In a discovery file that is not there yet, and names another daemon when the job was started again."""
    file = tmp_path / "rankd.json"

    def here(place: str) -> Router:
        address = f"ipc://{tmp_path}/{place}.sock"
        router = Router(address)
        fields = {"version": 1, **dict.fromkeys(("push", "alerts", "query"), address)}
        (tmp_path / "new").write_text(json.dumps(fields))
        (tmp_path / "new").chmod(0o644)
        (tmp_path / "new").replace(file)
        return router

    setup = Setup(file.as_uri())
    try:
        setup.put("a", 1)
        first = here("node1")
        first.welcome()
        assert first.chunk().step == 1
        first.send(Bye())
        second = here("node2")
        second.welcome()
        assert second.chunk().step == 1
        for router in (first, second):
            router.close()
    finally:
        setup.link.stop(0.0)
        setup.link.join(PATIENCE_SECONDS)
