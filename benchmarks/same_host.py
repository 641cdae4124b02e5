"""What the same-host path carries: snapshots that a daemon reads out of its client's memory, beside the same in frames.

Rows, one for each size of layer, of pushes of 128 MiB in bfloat16. `ours`: by a real `Client` to the whole daemon but
for its measuring, which would take both cores; from the push's return, when its copies are made and the first byte may
go, until the client heard that each snapshot was recorded. `rival`: the same client, and a daemon that has no room for
memory that is lent, so that all goes in ZeroMQ's frames over ipc://. `raw`: pyzmq's DEALER with the client's options to
a ROUTER over ipc://, the same bytes in chunks of the size for which the daemon asks, copied once into memory that is
there: what looks at no value, asks for no credit and has no gate. The three take turns. GB/s, medians of all rounds;
`ratio`, ours over the rival's, is to be at least `limit` where layers have 16 MB or more.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import zmq
from _daemon import clean_environment
from _report import Report

from rankd_client import Client
from rankd_client.link.dealer import OPTIONS
from rankd_client.wire import DEFAULT_CHUNK_BYTES, Chunk, encode

PUSH_BYTES = 128 << 20
SHAPES = {16: (2048, 4096), 64: (4096, 8192), 1: (512, 1024)}
"""Of a layer, by its MiB. The last is small, and has no limit."""

FLUSH_SECONDS = 60.0
LIMIT = 3.0

Send = Callable[[], float]
"""Ships all of it once and returns the seconds that it took."""


@contextlib.contextmanager
def receiver(kind: str, directory: Path) -> Iterator[str]:
    """The address of a process of _same_host_ends.py that lives as long as the block."""
    script = Path(__file__).with_name("_same_host_ends.py")
    command = [sys.executable, str(script), kind, str(directory / kind), str(PUSH_BYTES)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            word, address = process.stdout.readline().split()
            assert word == "ready"
            yield address
        finally:
            process.stdin.close()
            process.wait(60)


@contextlib.contextmanager
def pushed(address: str, path: str, shape: tuple[int, int]) -> Iterator[Send]:
    """A client whose snapshots go by `path`, from its second push on."""
    num_layers = PUSH_BYTES // (2 * shape[0] * shape[1])
    model = {f"layer{number}": torch.randn(shape, dtype=torch.bfloat16) for number in range(num_layers)}
    size = {"max_push_bytes": PUSH_BYTES, "max_memory_bytes": 2 * PUSH_BYTES}
    with Client("same_host", address, max_overhead=None, echo=False, **size) as client:

        def send() -> float:
            receipt = client.push(model)
            started = time.perf_counter()
            assert receipt.num_queued == num_layers, receipt
            assert client.flush(FLUSH_SECONDS), "not all was recorded"
            return time.perf_counter() - started

        send()
        assert client.stats.path == path, client.stats
        yield send


@contextlib.contextmanager
def sent_raw(address: str, shape: tuple[int, int]) -> Iterator[Send]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as dealer:
        for option, value in OPTIONS:
            dealer.setsockopt(option, value)
        dealer.connect(address)
        payload = memoryview(bytearray(PUSH_BYTES))
        chunk_bytes = min(DEFAULT_CHUNK_BYTES, 2 * shape[0] * shape[1])
        header, _ = encode(Chunk("layer", 1, "bfloat16", shape, 2 * shape[0] * shape[1], 0, payload[:chunk_bytes]))

        def send() -> float:
            started = time.perf_counter()
            for at in range(0, PUSH_BYTES, chunk_bytes):
                dealer.send_multipart([header, payload[at : at + chunk_bytes]], copy=False)
            dealer.recv()
            return time.perf_counter() - started

        yield send


def compare(report: Report, addresses: dict[str, str], mib: int, num_rounds: int) -> None:
    shape = SHAPES[mib]
    with (
        pushed(addresses["lent"], "memfd", shape) as lent,
        pushed(addresses["framed"], "zeromq", shape) as framed,
        sent_raw(addresses["raw"], shape) as raw,
    ):
        ways: dict[str, Send] = {"lent": lent, "framed": framed, "raw": raw}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(num_rounds + 1):
            for name, send in ways.items():
                took = send()
                if number:  # the first touches what is fresh
                    seconds[name].append(took)
    rates = {name: PUSH_BYTES / statistics.median(took) / 1e9 for name, took in seconds.items()}
    ratios = [rival / ours for ours, rival in zip(seconds["lent"], seconds["framed"], strict=True)]
    ratio = rates["lent"] / rates["framed"]
    report.row(
        f"same_host_{mib}_MiB_layers", ratio, LIMIT if mib >= 16 else 0.0, "ratio of GB/s", at_least=True,
        ours_gb_per_s=round(rates["lent"], 3), rival_gb_per_s=round(rates["framed"], 3),
        raw_gb_per_s=round(rates["raw"], 3), ratio_to_raw=round(rates["lent"] / rates["raw"], 3),
        lowest_paired=round(min(ratios), 3), highest_paired=round(max(ratios), 3), num_rounds=num_rounds,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, nargs="*", default=list(SHAPES), help="sizes of a layer (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rk") as directory, contextlib.ExitStack() as stack:
        addresses = {kind: stack.enter_context(receiver(kind, Path(directory))) for kind in ("lent", "framed", "raw")}
        for mib in arguments.mib:
            compare(report, addresses, mib, arguments.rounds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
