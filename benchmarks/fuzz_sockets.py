"""Hostile peers on raw sockets against a real `rankd serve`, while an honest trainer goes on pushing.

    python benchmarks/fuzz_sockets.py --seconds 30

Invariant: the daemon neither ends nor hangs (the trainer's pushes are recorded within HANG_SECONDS), its memory comes
to rest, and a message of 1 kB that claims 1 GiB makes it allocate less than 1 MB. Prints one JSON row for each; exits
1 where one does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from _daemon import clean_environment
from _hostile import ATTACKS, GIB, KINDS, Target, shake, zmtp_frame, zmtp_message
from _report import Report

from rankd_client import Client
from rankd_client.wire import Chunk, Hello, encode

HANG_SECONDS = 20.0
NUM_ATTACKERS = 4
COUNTING = threading.Lock()
NUM_CLAIMS = 20
WARM_UP_SHARE = 0.2
"""Of the time, after which memory is to stay what it is."""

MAX_GROWTH_BYTES = 64 << 20
"""Of resident memory after the warm-up: allocator and counters; a leak of 1 kB a message would be ten times as much."""


def memory_of(pid: int) -> dict[str, int]:
    """VmRSS, VmHWM (its peak) and VmPeak (the peak of what was allocated, used or not) in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM", "VmPeak")}


@contextlib.contextmanager
def served(url: str, log: Path) -> Iterator[tuple[subprocess.Popen[str], Target]]:
    """A daemon's process and the addresses of its ready line."""
    command = [sys.executable, "-m", "rankd", "serve", "--url", url, "--http", "127.0.0.1:0", "--device", "cpu"]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [*command, "--while-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=clean_environment(),
        )  # fmt: skip
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        if not words or words[0] != "ready":
            raise RuntimeError(f"the daemon did not start; see {log}")
        yield process, Target(dict(word.split("=", 1) for word in words[1:]))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def attack(target: Target, seed: int, stop: threading.Event, counts: Counter[str]) -> None:
    rng = random.Random(seed)
    while not stop.is_set():
        act, name = rng.choice(ATTACKS), rng.choice(list(KINDS))
        try:
            num_messages = act(target, name, rng)
        except OSError:  # cut off while it still sent, as it should be
            num_messages = 1
        with COUNTING:
            counts["num_connections"] += 1
            counts["num_messages"] += num_messages


def trade(url: str, stop: threading.Event, counts: Counter[str]) -> None:
    """The honest trainer: each push is to be recorded."""
    with Client("honest", endpoint=url, max_overhead=None, echo=False) as client:
        step = 0
        while not stop.is_set():
            step += 1
            client.push({"w": torch.full((16, 16), float(step))}, step=step)
            if client.flush(HANG_SECONDS):
                counts["num_recorded"] += 1
            else:
                counts["num_hangs"] += 1
            stop.wait(0.02)


def claim(target: Target, make: bytes) -> None:
    with target.connect("push") as peer:
        shake(peer, b"DEALER")
        peer.sendall(make)
        peer.settimeout(0.2)
        with contextlib.suppress(OSError):
            while peer.recv(4096):
                pass


def claims() -> dict[str, bytes]:
    """Messages of 1 kB that claim 1 GiB, by where they claim it."""
    hello = zmtp_message([bytes(part) for part in encode(Hello("claims", bytes(16)))])
    header = b"\x82\xa1t\xa5chunk\xa1x\xc6" + GIB.to_bytes(4, "big") + bytes(900)
    chunk = Chunk("huge", 1, "float32", (16384, 16384), GIB, 0, bytes(800))
    return {
        "frame": b"\x02" + GIB.to_bytes(8, "big") + bytes(1000),
        "header": hello + zmtp_frame(header),
        "shard": hello + zmtp_message([bytes(part) for part in encode(chunk)]),
    }


def measure_claims(report: Report, pid: int, target: Target) -> None:
    for where, message in claims().items():
        for _ in range(NUM_CLAIMS):
            claim(target, message)  # what is made once and kept
        before = memory_of(pid)
        for _ in range(NUM_CLAIMS):
            claim(target, message)
        after = memory_of(pid)
        allocated = max(0, after["VmPeak"] - before["VmPeak"], after["VmHWM"] - before["VmHWM"])
        report.row(f"claim of 1 GiB in a {where}", allocated, 1_000_000, "bytes", num_claims=NUM_CLAIMS)


def fuzz(report: Report, url: str, seconds: float, seed: int, log: Path) -> None:
    counts: Counter[str] = Counter()
    with served(url, log) as (process, target):
        push = target.addresses["push"]
        url = push.removesuffix("/push.sock") if push.startswith("ipc") else push
        measure_claims(report, process.pid, target)
        before, stop = memory_of(process.pid), threading.Event()
        threads = [threading.Thread(target=trade, args=[url, stop, counts])]
        threads += [
            threading.Thread(target=attack, args=[target, seed + number, stop, counts])
            for number in range(NUM_ATTACKERS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds * WARM_UP_SHARE)
        warm = memory_of(process.pid) if process.poll() is None else before
        time.sleep(seconds * (1 - WARM_UP_SHARE))
        stop.set()
        for thread in threads:
            thread.join()
        crashes = int(process.poll() is not None)
        after = before if crashes else memory_of(process.pid)
        for peer in target.kept:
            peer.close()
    crashes += log.read_text().count("Traceback")
    scheme = url.split(":", 1)[0]
    more = {"seed": seed, "seconds": seconds, **counts}
    report.row(f"crashes over {scheme}", crashes, 0, "crashes and tracebacks", **more)
    report.row(f"hangs over {scheme}", counts["num_hangs"], 0, f"pushes not recorded within {HANG_SECONDS:.0f} s")
    report.row(f"pushes over {scheme}", counts["num_recorded"], 1, "recorded meanwhile", at_least=True)
    report.row(
        f"memory over {scheme}", after["VmRSS"] - warm["VmRSS"], MAX_GROWTH_BYTES, "bytes of growth after the warm-up",
        before=before["VmRSS"], warm=warm["VmRSS"], after=after["VmRSS"], peak=after["VmHWM"],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=30.0, help="for all URLs together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="ipc://DIR or tcp://127.0.0.1:0; default: one after the other")
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        urls = [options.url] if options.url else [f"ipc://{directory}/s", "tcp://127.0.0.1:0"]
        for number, url in enumerate(urls):
            log = Path(directory) / f"daemon{number}.log"
            fuzz(report, url, options.seconds / len(urls), options.seed, log)
            if report.missed:
                sys.stderr.write(log.read_text()[-4000:])
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
