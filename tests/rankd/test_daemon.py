import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from rankd.config import ServeConfig, serve_config
from rankd.daemon import Daemon, Ready
from rankd.sockets import BindError
from rankd.store.reader import Reader
from rankd_client.wire import (
    MIN_CHUNK_BYTES,
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Event,
    Query,
    Refusal,
    decode_event,
    decode_reply,
    encode_query,
)

RAISES = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import rankd.executors
from rankd.cli.serve import _serve
from rankd.config import serve_config

class BrokenExecutor:
    num_slots = num_workers = 2

    def __init__(self, devices, on_fault, settings):
        self.device, self.devices = devices[0], devices
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(time.sleep, 3600)  # a solve that no one can interrupt

    def submit(self, work):
        raise ZeroDivisionError("a fault of ours")

    def close(self):
        self.pool.shutdown(wait=False)

rankd.executors.EXECUTORS["threads"] = BrokenExecutor
_serve(serve_config({"url": sys.argv[1], "http": "off", "device": "cpu"}))
"""


def config(directory: Path, **settings: Any) -> ServeConfig:
    return serve_config({"url": f"ipc://{directory}", "http": "off", "device": "cpu", **settings})


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


class Listener:
    """A subscriber to everything, which asks the query socket as well."""

    def __init__(self, ready: dict[str, str]) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.stream, self.query = self.context.socket(zmq.SUB), self.context.socket(zmq.DEALER)
        self.stream.connect(ready["alerts"])
        self.stream.subscribe(b"")
        self.query.connect(ready["query"])
        for sock in (self.stream, self.query):
            sock.setsockopt(zmq.RCVTIMEO, 30_000)

    def hear(self, *kinds: str) -> Event:
        while True:
            event = decode_event(self.stream.recv_multipart())
            if event.kind in kinds:
                return event

    def state(self) -> Any:
        self.query.send_multipart(encode_query(Query("state", 1)))
        return decode_reply(self.query.recv_multipart()).body

    def close(self) -> None:
        for sock in (self.stream, self.query):
            sock.close(linger=0)
        self.context.term()


@pytest.fixture
def listen() -> Iterator[Callable[[dict[str, str]], Listener]]:
    listeners: list[Listener] = []

    def start(ready: dict[str, str]) -> Listener:
        listeners.append(Listener(ready))
        listeners[-1].hear("heartbeat")  # the subscription has arrived
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def test_from_chunks_to_measurement_and_alert_and_a_clean_end(
    serve: Callable[..., Any],
    raw_peer: Callable[..., Any],
    listen: Callable[[dict[str, str]], Listener],
    socket_dir: Path,
    tmp_path: Path,
) -> None:
    daemon = serve("--url", f"ipc://{socket_dir}", "--data", str(tmp_path / "data"))
    assert daemon.ready["push"] == f"ipc://{socket_dir}/push.sock" and daemon.ready["http"] == "off"
    listener = listen(daemon.ready)
    trainer = raw_peer(daemon.ready["push"])
    welcome = trainer.greet()

    rows = MIN_CHUNK_BYTES // 8  # a matrix of two columns in two chunks, with singular values 3 √rows and 2 √rows
    matrix = np.tile(np.array([[3.0, 2.0], [3.0, -2.0]], np.float32), (rows, 1))
    trainer.push("w", 1, matrix.tobytes(), matrix.shape, chunk_bytes=MIN_CHUNK_BYTES)
    for _ in range(2):
        assert trainer.hear() == Ack("received", "w", 1, "weight", MIN_CHUNK_BYTES)
    assert trainer.hear() == Ack("recorded", "w", 1)
    seen = listener.hear("measurement", "alert")
    assert (seen.kind, seen.run, seen.seq, seen.stream_id) == ("measurement", "r", 1, welcome.stream_id)
    assert seen.body["spectral_norm"] == pytest.approx(3 * (2 * rows) ** 0.5, rel=1e-4)
    assert seen.body["stable_rank"] == pytest.approx(13 / 9, rel=1e-4)
    assert (seen.body["rows"], seen.body["cols"], seen.body["finite"]) == (2 * rows, 2, True)

    trainer.push("w", 2, floats(1, np.nan), (1, 2))
    assert trainer.hear() == Ack("received", "w", 2, "weight", 8)
    notice = trainer.hear()
    assert isinstance(notice, AlertNotice)
    assert trainer.hear() == Ack("recorded", "w", 2)
    assert listener.hear("measurement").body["stable_rank"] is None
    fired = listener.hear("alert")
    assert fired.body == notice.alert
    assert (fired.body["rule"], fired.body["layer"], fired.body["step"]) == ("nonfinite", "w", 2)
    heartbeat = listener.hear("heartbeat")
    assert heartbeat.body["state"] == "serving"
    assert [alert["alert_id"] for alert in listener.state()["alerts"]] == [fired.body["alert_id"]]

    trainer.push("w", 2, floats(1, np.nan), (1, 2))  # as after a reconnect
    assert trainer.hear() == Ack("received", "w", 2, "weight", 8)
    assert trainer.hear() == Ack("recorded", "w", 2)

    daemon.process.send_signal(signal.SIGTERM)
    assert trainer.hear() == Bye()
    while heartbeat.body["state"] != "stopping":
        heartbeat = listener.hear("heartbeat")
    code, errors = daemon.end(None)
    assert (code, "Traceback" in errors) == (0, False)
    assert "rule='nonfinite'" in errors
    with Reader(tmp_path / "data") as reader:
        assert [(n, row.step, row.finite) for n, row in reader.measurements("r")] == [(1, 1, True), (2, 2, False)]
        assert [n for n, _ in reader.alerts("r")] == [1]


def test_what_is_waiting_is_finished_before_the_end(
    serve: Callable[..., Any], raw_peer: Callable[..., Any], socket_dir: Path
) -> None:
    daemon = serve("--url", f"ipc://{socket_dir}", "--executor", "inline")
    trainer = raw_peer(daemon.ready["push"])
    trainer.greet()
    side = 300
    matrix = np.random.default_rng(1).normal(size=(side, side)).astype(np.float32).tobytes()
    layers = [f"layers.{number}" for number in range(6)]
    for layer in layers:
        trainer.push(layer, 1, matrix, (side, side))
    waiting, num_received = set(layers), 0
    while num_received < len(layers):
        message = trainer.hear()
        num_received += message.state == "received"
        waiting -= {message.layer} if message.state == "recorded" else set()
    daemon.process.send_signal(signal.SIGINT)
    while not isinstance(message := trainer.hear(), Bye):
        assert message == Ack("recorded", message.layer, 1)
        waiting.remove(message.layer)
    assert not waiting
    assert daemon.end(None)[0] == 0


def test_a_long_solve_does_not_hold_up_the_end(
    serve: Callable[..., Any], raw_peer: Callable[..., Any], socket_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "rankd.toml").write_text("[limits]\ndrain_seconds = 0.2\n[measure]\ntier = 'exact'\n")
    daemon = serve("--url", f"ipc://{socket_dir}", "--config", str(tmp_path / "rankd.toml"))
    trainer = raw_peer(daemon.ready["push"])
    trainer.greet()
    side = 2600  # seconds on one core
    matrix = np.random.default_rng(1).normal(size=(side, side)).astype(np.float32).tobytes()
    trainer.push("huge", 1, matrix, (side, side))
    while len(matrix) > 0:
        message = trainer.hear()
        assert isinstance(message, Ack) and message.state == "received"
        matrix = matrix[message.credit_bytes :]
    daemon.process.send_signal(signal.SIGTERM)
    assert trainer.hear() == Bye(), "not recorded: its client keeps it"
    code, errors = daemon.end(None)
    assert code == 0 and "their clients keep them" in errors


def test_a_fault_of_ours_ends_the_process_with_a_traceback(
    serve: Callable[..., Any], raw_peer: Callable[..., Any], socket_dir: Path
) -> None:
    daemon = serve(f"ipc://{socket_dir}", command=[sys.executable, "-c", RAISES])
    trainer = raw_peer(daemon.ready["push"])
    trainer.greet()
    trainer.push("w", 1, floats(1, 2), (1, 2))
    code, errors = daemon.end(None)
    assert code == 1
    assert "Traceback" in errors and "ZeroDivisionError: a fault of ours" in errors


async def test_a_snapshot_whose_shards_do_not_all_come_is_refused_in_time(
    socket_dir: Path, raw_peer: Callable[..., Any]
) -> None:
    limits = {"heartbeat_seconds": 0.01, "assembly_timeout_seconds": 0.01}
    daemon = Daemon(config(socket_dir, limits=limits))

    def trainer() -> None:
        peer = raw_peer(daemon.ready().push)
        peer.greet()
        matrix = bytes(2 * MIN_CHUNK_BYTES)
        peer.push("w", 1, matrix, (2, MIN_CHUNK_BYTES // 4), chunk_bytes=len(matrix))
        assert isinstance(peer.hear(), Ack)
        peer.hear_end_of("w", 1)
        peer.say(Chunk("w", 2, "float32", (2, MIN_CHUNK_BYTES // 4), len(matrix), 0, bytes(MIN_CHUNK_BYTES)))
        assert isinstance(peer.hear(), Ack)
        message = peer.hear()
        assert isinstance(message, Refusal) and (message.code, message.layer, message.step) == ("timed_out", "w", 2)

    announced: list[Ready] = []
    running = asyncio.create_task(daemon.run(announced.append))
    try:
        await asyncio.to_thread(trainer)
        assert daemon.health.describe()["assembly_bytes"] == 0 and daemon.health.describe()["status"] == "ok"
    finally:
        daemon.stop.set()
        await asyncio.wait_for(running, 60)
    assert announced == [daemon.ready()] and daemon.drained


async def test_everyone_hears_what_became_of_a_displaced_snapshot(
    socket_dir: Path, raw_peer: Callable[..., Any]
) -> None:
    """With the analysis not yet running nothing is measured, so that newer ones displace and the bound is reached."""
    kilobyte = {"max_mailbox_bytes": 1000, "max_layer_bytes": 1000}
    daemon = Daemon(config(socket_dir, limits=kilobyte))
    intake = asyncio.create_task(daemon.intake())

    def trainer() -> list[Any]:
        first, second = raw_peer(daemon.ready().push), raw_peer(daemon.ready().push)
        first.greet()
        second.greet()
        heard = []
        for peer, layer, step, num_elements in (
            (first, "a", 1, 100),
            (second, "a", 2, 100),
            (second, "b", 1, 200),
        ):
            peer.push(layer, step, floats(*[1.0] * num_elements), (1, num_elements))
            assert peer.hear().state == "received"
        heard.append(first.hear())
        heard.append(second.hear())
        for _ in range(2):
            second.push("c", 3, floats(np.nan), (1, 1))
            assert second.hear().state == "received"
        second.push("c", 4, floats(np.nan), (1, 1))
        assert second.hear().state == "received"
        heard.append(second.hear())
        return heard

    try:
        heard = await asyncio.wait_for(asyncio.to_thread(trainer), 60)
    finally:
        intake.cancel()
        daemon.close()
    assert heard == [
        Ack("superseded", "a", 1, by_step=2),
        Ack("superseded", "a", 2, by_step=None),
        Ack("superseded", "c", 4, by_step=3),
    ]


async def test_a_second_daemon_is_refused(socket_dir: Path) -> None:
    daemon = Daemon(config(socket_dir, http="127.0.0.1:0"))
    try:
        with pytest.raises(BindError, match="in use by another rankd"):
            Daemon(config(socket_dir))
        port = daemon.ready().http.removeprefix("http://")
        with pytest.raises(BindError, match=f"http={port} cannot be bound: .*; give --http HOST:PORT or --http off"):
            Daemon(config(socket_dir / "other", http=port))
    finally:
        daemon.close()
