"""What a trainer's memory grows by in 10,000 pushes, whatever its daemon does, and what is left when it closes.

    python benchmarks/tap_memory.py [--pushes N] [--scenarios …]

The trainer is a process of its own; the daemon is a real one that is *alive*, *dead* (killed after the first push, its
socket's file still there), *stalled* (SIGSTOP) or *restarting* (SIGKILL every second, another at once). Growth is of
resident memory, a memfd's pages among it, from before the client is made to the largest that was seen; it may be the
arena, which is what the client says that it has allocated, and 16 MB. Nothing may have been raised (the client is
`strict`), and when it has closed no thread, no open file and no file on disk may be left. Prints one JSON line a row,
and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _daemon import clean_environment
from _report import Report

from rankd.config import serve_config
from rankd.daemon import Daemon

SLACK_BYTES = 16_000_000
"""ZeroMQ and its threads, this client's modules, torch's first copies."""

RESTART_SECONDS = 1.0
READY_SECONDS, TRAINER_SECONDS = 60.0, 600.0
TRAINER = Path(__file__).parent / "_tap_trainer.py"


class Forked:
    """A daemon in a forked process: it is there within milliseconds, because torch has been imported before."""

    def __init__(self, url: str) -> None:
        self.num_started = 0
        self._url = url
        self._context = multiprocessing.get_context("fork")
        self.start()

    def start(self) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        self._process = self._context.Process(target=_serve, args=(self._url, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not ours.poll(READY_SECONDS):
            raise RuntimeError("the daemon does not start")
        ours.close()
        self.num_started += 1

    def signal(self, signum: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signum)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def restart_until(self, ended: threading.Event) -> None:
        while not ended.wait(RESTART_SECONDS):
            self.kill()
            self.start()


def _serve(url: str, ready: Any) -> None:
    settings: dict[str, Any] = {"url": url, "http": "off", "device": "cpu"}

    async def serve() -> None:
        await Daemon(serve_config(settings)).run(announce=lambda _: ready.send("ready"))

    with Path(os.devnull).open("w") as null:  # what a daemon logs of its clients' ends
        os.dup2(null.fileno(), 2)
        asyncio.run(serve())


@contextlib.contextmanager
def trainer(url: str, directory: Path, arguments: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """Its first push is recorded. Whatever it writes by a relative name, or as a temporary file, is in `directory`."""
    command = [sys.executable, TRAINER, url, str(arguments.pushes), str(arguments.interval)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=directory,
        env={**clean_environment(), "TMPDIR": str(directory)},
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the trainer did not start")
        yield process
    finally:
        process.kill()
        process.communicate()


def alive(daemon: Forked, ended: threading.Event) -> None:
    ended.wait()


def dead(daemon: Forked, ended: threading.Event) -> None:
    daemon.kill()
    ended.wait()


def stalled(daemon: Forked, ended: threading.Event) -> None:
    daemon.signal(signal.SIGSTOP)
    ended.wait()


def restarting(daemon: Forked, ended: threading.Event) -> None:
    daemon.restart_until(ended)


SCENARIOS: dict[str, Callable[[Forked, threading.Event], None]] = {
    "alive": alive,
    "dead": dead,
    "stalled": stalled,
    "restarting": restarting,
}


def play(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the trainer says, and what it left in its directory."""
    with tempfile.TemporaryDirectory(prefix="rankd-") as made:
        sockets, home = Path(made) / "s", Path(made) / "home"
        home.mkdir()
        daemon = Forked(f"ipc://{sockets}")
        try:
            with trainer(f"ipc://{sockets}", home, arguments) as process:
                ended = threading.Event()
                said: list[str] = []
                listener = threading.Thread(target=_hear_end, args=(process, said, ended))
                listener.start()
                try:
                    SCENARIOS[name](daemon, ended)
                finally:
                    listener.join()
                if process.returncode != 0:
                    raise RuntimeError(f"the trainer ended with {process.returncode}")
        finally:
            daemon.kill()
        on_disk = [str(path) for path in home.rglob("*")]
        return {**json.loads(said[0]), "on_disk": on_disk, "daemons": daemon.num_started}


def _hear_end(process: subprocess.Popen[str], said: list[str], ended: threading.Event) -> None:
    try:
        output, _ = process.communicate("go\n", timeout=TRAINER_SECONDS)
        said.append(output)
    finally:
        ended.set()


def judge(report: Report, name: str, outcome: dict[str, Any], num_pushes: int) -> None:
    grown, arena = outcome.pop("grown_bytes"), outcome.pop("arena_bytes")
    left = {
        "num_errors": outcome.pop("num_errors"),
        "threads": max(outcome.pop("threads_left"), len(outcome.pop("python_threads_left"))),
        "files_open": outcome.pop("files_open"),
        "files_on_disk": outcome.pop("files_left") + outcome.pop("on_disk"),
    }
    limit = arena + SLACK_BYTES
    report.row(f"grown_{name}", grown, limit, "bytes", arena_bytes=arena, pushes=num_pushes, **outcome)
    number = left["num_errors"] + left["threads"] + len(left["files_open"]) + len(left["files_on_disk"])
    report.row(f"left_{name}", number, 0, "things", **left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=int, default=10_000, metavar="N")
    parser.add_argument("--interval", type=float, default=0.003, metavar="S", help="from push to push")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    arguments = parser.parse_args()
    report = Report()
    for name in arguments.scenarios:
        judge(report, name, play(name, arguments), arguments.pushes)
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
