"""The receiving ends of benchmarks/remote.py and same_host.py: each a process of its own, at `url` (tcp:// or ipc://).

`intake`: the whole daemon (gate, intake, assembling, mailbox, answers) but for what comes behind: a snapshot that is
whole counts as measured. `framed`: the same, with room for nobody's memory, so that clients on its host send frames.
`raw` and `raw-copied`: pyzmq's ROUTER, which throws away what comes, or copies it once into memory that is there. Each
prints `ready ADDRESS` and lives until its stdin ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import zmq
from _daemon import clean_environment

from rankd.auth import Keyring
from rankd.config import ServeConfig, serve_config
from rankd.daemon import Daemon
from rankd.records import Measurement, Snapshot
from rankd.sockets import RECEIVE_HWM
from rankd.stages.measure import Measure
from rankd_client.wire import Ack

QUIET = {"heartbeat_seconds": 60.0, "peer_timeout_seconds": 200.0}
"""A heartbeat would wake the client's thread, which then sends what a push has copied before it returns."""

FRAMED = {"max_lent_bytes": 1, "max_lent_bytes_per_connection": 1}


@contextlib.contextmanager
def receiver(kind: str, url: str, num_bytes: int, keys: Path | None = None) -> Iterator[str]:
    """The address of an end that lives as long as the block; a raw one answers once after each `num_bytes`."""
    command = [sys.executable, __file__, kind, url, str(num_bytes), str(keys or "")]
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


class Intake(Daemon):
    """A daemon that measures in no time, and so records nothing."""

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config)
        self.measure = cast("Measure", self._measured)

    async def _measured(self, snapshot: Snapshot) -> list[Measurement]:
        done = Ack("recorded", snapshot.layer, snapshot.step, snapshot.role)
        self.receive.acknowledge(self.assemble.settle((*snapshot.key, snapshot.step)), done)
        return []


async def intake(url: str, keys: str, lends: bool) -> None:
    settings = {"url": url, "http": "off", "device": "cpu", "while_stdin": True, "keys": keys or None}
    settings |= {"insecure": url.startswith("tcp:") and not keys, "limits": QUIET if lends else QUIET | FRAMED}
    await Intake(serve_config(settings)).run(announce=lambda ready: print("ready", ready.push, flush=True))


def raw(url: str, num_bytes: int, keys: str, copied: bool) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        if keys:
            public, secret = Keyring(Path(keys)).server()
            router.curve_server, router.curve_publickey, router.curve_secretkey = True, public.encode(), secret.encode()
        router.bind(url)
        print("ready", router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
        threading.Thread(target=lambda: sys.stdin.read() or os._exit(0), daemon=True).start()
        target, at = memoryview(bytearray(num_bytes)), 0
        while True:
            identity, _, payload = router.recv_multipart(copy=False)
            if copied:
                target[at : at + len(payload)] = payload.buffer
            at += len(payload)
            if at == num_bytes:
                at = 0
                router.send_multipart([identity, b"done"])


def main() -> None:
    kind, url, num_bytes, keys = sys.argv[1:]
    if kind in ("intake", "framed"):
        asyncio.run(intake(url, keys, lends=kind == "intake"))
    else:
        raw(url, int(num_bytes), keys, copied=kind == "raw-copied")


if __name__ == "__main__":
    main()
