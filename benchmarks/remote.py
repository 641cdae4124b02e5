"""What the remote path carries: snapshots from a client to a daemon over loopback TCP, beside raw pyzmq.

Rows: `remote_null`, without keys; `remote_curve`, encrypted on both sides; `remote_10gbe`, without keys, where the
kernel holds the sender's TCP to 1.25 GB/s, ours and the rival's alike: there a network is the limit, not these cores.

`ours`: a push of 16 matrices of 16 MiB by a real `Client` to the whole daemon but for its measuring, which would take
the cores for seconds (_ends.py); from the push's return, when its copies are made and the first byte goes, until
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _ends import receiver
from _report import Report
from _sending import Send, make_weights, pushed, sent_raw

from rankd.auth import Keyring

NUM_BYTES, SHAPE = 256 << 20, (2048, 4096)
PAUSE_SECONDS = 0.1
"""Before each push: the client's thread looks as often whether memory has become free, and would send at once."""

ANY_PORT = "tcp://127.0.0.1:0"

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


def compare(report: Report, row: Row, rounds: int, keys: Path | None, key: Path | None) -> None:
    weights = make_weights(NUM_BYTES, SHAPE)
    with contextlib.ExitStack() as stack:
        addresses = [
            stack.enter_context(receiver(kind, ANY_PORT, NUM_BYTES, keys)) for kind in ("intake", "raw", "raw-copied")
        ]
        ways: list[Send] = [stack.enter_context(pushed(addresses[0], weights, "zeromq", key, PAUSE_SECONDS))]
        ways += [stack.enter_context(sent_raw(address, weights, keys)) for address in addresses[1:]]
        for send in ways[1:]:
            send()  # connects
        if row.is_paced:
            for address in addresses:
                pace(address)
        for send in ways:
            send()
        seconds = [[send() for send in ways] for _ in range(rounds)]
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
