"""Is a snapshot ever torn, under an optimizer that keeps writing the weights in place?

    python benchmarks/torn.py [--device cpu|cuda] [--pushes N]

An SGD step adds a whole number to each weight, so that the bytes of every layer at every step are known: they come
again after PERIOD steps, and before the run each layer's checksum at each of them is taken from a fenced copy (on a GPU
after a synchronisation). After each push the optimizer goes on until all of it is recorded, while it is being sent, and
on a GPU still being copied. The receiver, a real daemon's intake in a process of its own, compares each snapshot with
the checksum of the step that it claims to be. All pushed layers must come, each whole; and the same check must find
torn ones where nothing keeps the optimizer from a copy that is under way: on the CPU where live weights are handed to
ZeroMQ, on a GPU where the training stream does not wait for the copies. Prints one JSON line a row, and exits with 1 if
one misses its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import zmq
from _report import Report

from rankd_client import Client
from rankd_client.endpoints import endpoints_of
from rankd_client.wire import Ack, Chunk, Hello, Message, Refusal, Welcome, decode, encode

PERIOD = 64
PATTERN = 64
"""Weights are whole numbers from 1 to PATTERN + PERIOD: exact in bfloat16, as their sums are in float32."""

WAIT_SECONDS = 0.0005
"""Between two optimizer steps: others need the processor too."""

NUM_PRODUCTS = 8
"""Of 4096 × 4096 in bfloat16, which a GPU is busy with when a push comes, as in training, where the host is ahead of
it: copies and the next writes begin together, or they would if nothing kept them apart. 2 ms on an H100."""

ANSWER_SECONDS = 60.0
RECEIVER = Path(__file__).parent / "_torn_receiver.py"


class Training:
    """A model whose bytes are known at each step, and its optimizer."""

    def __init__(self, device: str, num_layers: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.step = 0
        self.model = torch.nn.ParameterDict()
        for index in range(num_layers):
            pattern = torch.randint(1, PATTERN + 1, (size, size), generator=generator)
            self.model[f"layer{index}"] = torch.nn.Parameter(pattern.to(device, torch.float32))
        for parameter in self.model.values():
            parameter.grad = torch.full_like(parameter, -1.0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0, fused=device == "cuda")
        self._factor = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16) if device == "cuda" else None

    def work(self) -> None:
        """What comes before a push; it takes the host no time."""
        for _ in range(NUM_PRODUCTS if self._factor is not None else 0):
            self._factor @ self._factor

    def write(self) -> None:
        """One step on: 1 more in each weight, or at the end of a period as many less as were added in it."""
        self.step += 1
        comes_round = self.step % PERIOD == 0
        if comes_round:
            self._fill(PERIOD - 1.0)
        self.optimizer.step()
        if comes_round:
            self._fill(-1.0)

    def write_until(self, done: Callable[[float], bool]) -> None:
        """`done` waits for so many seconds, and says whether all was recorded."""
        deadline = time.monotonic() + ANSWER_SECONDS
        self.write()
        while not done(WAIT_SECONDS):
            self.write()
            if time.monotonic() > deadline:
                raise RuntimeError("the receiver does not answer")

    def _fill(self, value: float) -> None:
        for parameter in self.model.values():
            assert parameter.grad is not None
            parameter.grad.fill_(value)

    def table(self, dtype: torch.dtype) -> dict[str, list[int]]:
        """Layer → its checksum at each step of a period, of copies that nothing is written into."""
        table: dict[str, list[int]] = {name: [] for name in self.model}
        for _ in range(PERIOD):
            for name, parameter in self.model.items():
                copy = parameter.detach().to("cpu", dtype, copy=True)
                table[name].append(zlib.crc32(bytes_of(copy)))
            self.write()
        return table


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a CPU tensor itself."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")


@contextlib.contextmanager
def receiving(directory: Path, table: dict[str, list[int]]) -> Iterator[tuple[str, Counter[str]]]:
    """The URL of a receiver, and, once it has ended, what it saw."""
    url, seen = f"ipc://{directory}/s", Counter[str]()
    (directory / "table.json").write_text(json.dumps(table))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}
    receiver = subprocess.Popen(
        [sys.executable, RECEIVER, url, directory / "table.json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline() != "ready\n":
            raise RuntimeError("the receiver did not start")
        yield url, seen
        seen.update(json.loads(receiver.communicate(timeout=ANSWER_SECONDS)[0]))
    finally:
        receiver.kill()
        receiver.communicate()


def push_all(training: Training, url: str, num_pushes: int, dtype: str, attached: bool) -> int:
    """Each push is recorded before the next, with writes in the meantime. Returns the number of snapshots."""
    options: dict[str, Any] = {"max_overhead": None, "max_push_bytes": 1 << 30, "echo": False, "strict": True}
    with Client("torn", url, dtype=dtype, **options) as client:
        if attached:
            client.attach(training.model, training.optimizer)
        num_queued = 0
        while num_pushes > 0:
            training.work()
            receipt = client.push(training.model, step=training.step)
            training.write_until(client.flush)
            num_queued += receipt.num_queued
            num_pushes -= receipt.num_queued > 0  # none where ZeroMQ holds what was sent a moment longer
    return num_queued


class LiveSender:
    """What one must not do: hands the weights' own memory to ZeroMQ, which reads it when it gets round to it."""

    def __init__(self, url: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoints_of(url).push)
        self._socket.send_multipart(encode(Hello("torn", os.urandom(16))))
        welcome = self._hear()
        assert isinstance(welcome, Welcome)
        self._chunk_bytes = welcome.chunk_bytes
        self._num_under_way = 0

    def send(self, training: Training) -> None:
        for name, parameter in training.model.items():
            self._num_under_way += 1
            view, shape = bytes_of(parameter.detach()), tuple(parameter.shape)
            for start in range(0, len(view), self._chunk_bytes):
                payload = view[start : start + self._chunk_bytes]
                chunk = Chunk(name, training.step, "float32", shape, len(view), start, payload)
                self._socket.send_multipart(encode(chunk), copy=False)

    def all_recorded(self, seconds: float) -> bool:
        while self._num_under_way and self._socket.poll(max(1, int(1000 * seconds))):
            message = self._hear()
            if isinstance(message, Refusal):
                raise RuntimeError(f"refused: {message}")
            self._num_under_way -= isinstance(message, Ack) and message.state == "recorded"
        return not self._num_under_way

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _hear(self) -> Message:
        if not self._socket.poll(1000 * ANSWER_SECONDS):
            raise RuntimeError("the receiver does not answer")
        return decode(self._socket.recv_multipart())


def send_live(training: Training, url: str, num_pushes: int) -> None:
    sender = LiveSender(url)
    try:
        for _ in range(num_pushes):
            sender.send(training)
            training.write_until(sender.all_recorded)
    finally:
        sender.close()


@contextlib.contextmanager
def no_fence() -> Iterator[None]:
    """The training stream waits for no event; the copies' own stream still waits for the training."""
    training, wait_event = torch.cuda.current_stream(), torch.cuda.Stream.wait_event

    def wait_elsewhere(stream: Any, event: Any) -> None:
        if stream != training:
            wait_event(stream, event)

    torch.cuda.Stream.wait_event = wait_elsewhere  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.cuda.Stream.wait_event = wait_event  # type: ignore[method-assign]


def unfenced(training: Training, device: str, num_pushes: int) -> Counter[str]:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with (
        tempfile.TemporaryDirectory(prefix="rankd-") as directory,
        receiving(Path(directory), training.table(dtype)) as (url, seen),
    ):
        if device == "cpu":
            send_live(training, url, num_pushes)
        else:
            with no_fence():
                push_all(training, url, num_pushes, "bfloat16", attached=True)
    return seen


def fenced(training: Training, num_pushes: int, dtype: str, attached: bool) -> tuple[Counter[str], int]:
    """What the receiver saw, and the number of snapshots that were pushed."""
    with (
        tempfile.TemporaryDirectory(prefix="rankd-") as directory,
        receiving(Path(directory), training.table(getattr(torch, dtype))) as (url, seen),
    ):
        num_queued = push_all(training, url, num_pushes, dtype, attached)
    return seen, num_queued


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pushes", type=int, default=10_000, metavar="N", help="of each dtype")
    parser.add_argument("--unfenced", type=int, metavar="N", help="pushes without a fence; a tenth unless given")
    parser.add_argument("--layers", type=int, default=4, metavar="N")
    parser.add_argument("--size", type=int, metavar="N", help="rows and columns of a layer; 512, on a GPU 2048")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], metavar="DTYPE", help="bfloat16, float32")
    parser.add_argument("--plain", action="store_true", help="no attach(): each push has the training stream wait")
    arguments = parser.parse_args()
    device: str = arguments.device
    torch.set_num_threads(1)
    training = Training(device, arguments.layers, arguments.size or (512 if device == "cpu" else 2048))
    more = {"layers": arguments.layers, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    report = Report()
    for dtype in arguments.dtypes:
        seen, num_queued = fenced(training, arguments.pushes, dtype, attached=not arguments.plain)
        report.row(f"torn_{dtype}", seen["torn"] + seen["another"], 0, "snapshots", **seen, **more)
        report.row(f"checked_{dtype}", seen.total(), num_queued, "snapshots", at_least=True, pushes=arguments.pushes)
    num_pushes = arguments.unfenced or max(1, arguments.pushes // 10)
    seen = unfenced(training, device, num_pushes)
    report.row("torn_without_fence", seen["torn"], 1, "snapshots", at_least=True, **seen, pushes=num_pushes, **more)
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
