"""What the remote path carries: snapshots from a client to a daemon over loopback TCP, beside raw pyzmq.

Rows: `remote_null`, without keys; `remote_curve`, encrypted on both sides; `remote_10gbe`, without keys, where the
kernel holds the sender's TCP to 1.25 GB/s, ours and the rival's alike: there a network is the limit, not these cores.

`ours`: a push of 16 matrices of 16 MiB by a real `Client` to the whole daemon but for its measuring, which would take
the cores for seconds (_remote_ends.py); from the push's return, when its copies are made and the first byte goes, until
the client heard that every snapshot was dealt with. `rival`: the same bytes by pyzmq's DEALER, with the client's
options, to a ROUTER, in chunks of the daemon's size behind a header each, copy=False at both ends, until an answer is
back. `rival_copied`: the same to a receiver that copies each chunk once into memory that is there, as whoever looks at
a matrix must. The three take turns. GB/s of the best round each, which others on the machine disturbed least; `medians`
are ours, rival, rival_copied. `ours` is to be at least `limit`, that is `limit_ratio` of the rival's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zmq
from _daemon import clean_environment
from _report import Report

from rankd.auth import Keyring
from rankd.auth.keyring import new_pair
from rankd_client import Client
from rankd_client.link.dealer import OPTIONS
from rankd_client.wire import DEFAULT_CHUNK_BYTES, Chunk, encode

NUM_LAYERS, SHAPE = 16, (2048, 4096)
NUM_BYTES = NUM_LAYERS * 2 * SHAPE[0] * SHAPE[1]
CHUNK_BYTES = DEFAULT_CHUNK_BYTES
FLUSH_SECONDS = 60.0
PAUSE_SECONDS = 0.1
"""Before each push: the client's thread looks as often whether memory has become free, and would send at once."""

NET_BYTES_PER_SECOND = 1_250_000_000
SO_MAX_PACING_RATE = 47
"""Linux; Python has no name for it."""


@dataclass(frozen=True)
class Row:
    """`limit`: the share of the rival's throughput that ours is to have at least; 0: it is told, not judged."""

    name: str
    limit: float
    has_keys: bool = False
    is_paced: bool = False


ROWS = (Row("remote_null", 0.9), Row("remote_curve", 0.0, has_keys=True), Row("remote_10gbe", 0.9, is_paced=True))

Send = Callable[[], float]
"""Ships all of it once and returns the seconds that it took."""


@contextlib.contextmanager
def receiver(kind: str, keys: Path | None) -> Iterator[str]:
    """The address of a process of _remote_ends.py that lives as long as the block."""
    script = Path(__file__).with_name("_remote_ends.py")
    command = [sys.executable, str(script), kind, str(keys or ""), str(NUM_BYTES)]
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


def make_keys(directory: Path) -> tuple[Path, Path]:
    """A keyring, and the key file of one who may push."""
    keyring, file = Keyring(directory / "keys"), directory / "bench.key"
    keyring.create()
    command = [sys.executable, "-m", "rankd", "keys", "new", "bench", "--keys", str(keyring.directory)]
    subprocess.run([*command, "--rights", "push", "-o", str(file)], check=True, stdout=subprocess.DEVNULL)
    return keyring.directory, file


def pace(address: str) -> None:
    """Hold this process's connections to `address` to a network's speed, once they are there."""
    port = int(address.rsplit(":", 1)[1])
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as copy:
                if copy.family != socket.AF_UNIX and copy.getpeername()[1] == port:
                    copy.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, NET_BYTES_PER_SECOND)


@contextlib.contextmanager
def ours(weights: dict[str, torch.Tensor], keys: Path | None, key: Path | None) -> Iterator[tuple[Send, str]]:
    options: dict[str, Any] = {
        "max_overhead": None,
        "max_push_bytes": NUM_BYTES,
        "echo": False,
        "strict": True,
        "key": key,
    }
    with receiver("intake", keys) as address, Client("remote", address, **options) as client:

        def send() -> float:
            time.sleep(PAUSE_SECONDS)
            receipt = client.push(weights)
            started = time.perf_counter()
            if receipt.num_queued != NUM_LAYERS or not client.flush(FLUSH_SECONDS):
                raise RuntimeError(f"{receipt.num_queued} of {NUM_LAYERS} queued, and not all of them recorded")
            return time.perf_counter() - started

        yield send, address


@contextlib.contextmanager
def rival(weights: dict[str, torch.Tensor], kind: str, keys: Path | None) -> Iterator[tuple[Send, str]]:
    payloads = []
    for weight in weights.values():
        whole = memoryview(weight.view(torch.uint8).numpy().data).cast("B")
        payloads += [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]
    header = encode(Chunk("layer", 0, "bfloat16", SHAPE, 2 * SHAPE[0] * SHAPE[1], 0, payloads[0]))[0]
    with receiver(kind, keys) as address, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        for option, value in OPTIONS:
            dealer.setsockopt(option, value)
        if keys is not None:
            public, secret = new_pair()
            dealer.curve_publickey, dealer.curve_secretkey = public.encode(), secret.encode()
            dealer.curve_serverkey = Keyring(keys).server()[0].encode()
        dealer.connect(address)

        def send() -> float:
            started = time.perf_counter()
            for payload in payloads:
                dealer.send_multipart([header, payload], copy=False)
            dealer.recv()
            return time.perf_counter() - started

        yield send, address


def compare(report: Report, row: Row, rounds: int, keys: Path | None, key: Path | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer.{n}": torch.randn(SHAPE, generator=generator).bfloat16() for n in range(NUM_LAYERS)}
    with contextlib.ExitStack() as stack:
        ways = [
            stack.enter_context(ours(weights, keys, key)),
            stack.enter_context(rival(weights, "raw", keys)),
            stack.enter_context(rival(weights, "raw-copied", keys)),
        ]
        for send, address in ways:
            send()  # connects, allocates
            if row.is_paced:
                pace(address)
            send()
        seconds = [[send() for send, _ in ways] for _ in range(rounds)]
    best, median = (
        [NUM_BYTES / of(taken) / 1e9 for taken in zip(*seconds, strict=True)] for of in (min, statistics.median)
    )
    more: dict[str, Any] = dict(zip(("rival", "rival_copied"), rounded(best[1:]), strict=True))
    more |= {f"ratio{end}": round(best[0] / best[at], 3) for at, end in ((1, ""), (2, "_copied"))}
    more |= {"limit_ratio": row.limit, "medians": rounded(median), "rounds": rounds, "bytes": NUM_BYTES}
    more["rival_is"] = "pyzmq DEALER to ROUTER, copy=False; copied: each chunk once, into memory that is there"
    ours_best, wanted = rounded([best[0], row.limit * best[1]])
    report.row(row.name, ours_best, wanted, "GB/s", at_least=True, **more)


def rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", nargs="+", default=[row.name for row in ROWS], metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory() as directory:
        keyring, key = make_keys(Path(directory))
        for row in ROWS:
            if row.name in arguments.rows:
                compare(report, row, arguments.rounds, *((keyring, key) if row.has_keys else (None, None)))
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
