"""The receiving ends of benchmarks/remote.py, each a process of its own.

`intake`: the whole daemon (gate, intake, assembling, mailbox, answers) but for what comes behind: a snapshot that is
whole counts as measured. `raw` and `raw-copied`: pyzmq's ROUTER, which throws away what comes, or copies it once into
memory that is there. Each prints `ready ADDRESS` and lives until its stdin ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import cast

import zmq

from rankd.auth import Keyring
from rankd.config import ServeConfig, serve_config
from rankd.daemon import Daemon
from rankd.records import Measurement, Snapshot
from rankd.sockets import RECEIVE_HWM
from rankd.stages.measure import Measure
from rankd_client.wire import Ack

ANY_PORT = "tcp://127.0.0.1:0"
QUIET = {"heartbeat_seconds": 60.0, "peer_timeout_seconds": 200.0}
"""A heartbeat would wake the client's thread, which then sends what a push has copied before it returns."""


class Intake(Daemon):
    """A daemon that measures in no time, and so records nothing."""

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config)
        self.measure = cast("Measure", self._measured)

    async def _measured(self, snapshot: Snapshot) -> list[Measurement]:
        done = Ack("recorded", snapshot.layer, snapshot.step, snapshot.role)
        self.receive.acknowledge(self.assemble.settle((*snapshot.key, snapshot.step)), done)
        return []


async def intake(keys: str) -> None:
    settings = {"url": ANY_PORT, "http": "off", "device": "cpu", "while_stdin": True, "keys": keys or None}
    settings |= {"insecure": not keys, "limits": QUIET}
    await Intake(serve_config(settings)).run(announce=lambda ready: print("ready", ready.push, flush=True))


def raw(keys: str, num_bytes: int, copied: bool) -> None:
    """Answers once after each `num_bytes` of payload."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        if keys:
            public, secret = Keyring(Path(keys)).server()
            router.curve_server, router.curve_publickey, router.curve_secretkey = True, public.encode(), secret.encode()
        router.bind(ANY_PORT)
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
    kind, keys, num_bytes = sys.argv[1:]
    if kind == "intake":
        asyncio.run(intake(keys))
    else:
        raw(keys, int(num_bytes), kind == "raw-copied")


if __name__ == "__main__":
    main()
