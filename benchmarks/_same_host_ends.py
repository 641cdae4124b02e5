"""The receiving ends of benchmarks/same_host.py, each a process of its own on ipc in DIRECTORY.

`lent`: the whole daemon but for its measuring (benchmarks/_remote_ends.py). `framed`: the same, with room for nobody's
memory, so that clients send frames. `raw`: pyzmq's ROUTER, which copies each chunk into memory that is there. Each
prints `ready ADDRESS` and lives until its stdin ends.
"""

from __future__ import annotations

import asyncio
import sys
import threading

import zmq
from _remote_ends import Intake

from rankd.config import serve_config
from rankd.sockets import RECEIVE_HWM


async def intake(directory: str, lends: bool) -> None:
    limits = {} if lends else {"max_lent_bytes": 1, "max_lent_bytes_per_connection": 1}
    settings = {"url": f"ipc://{directory}", "http": "off", "device": "cpu", "while_stdin": True, "limits": limits}
    await Intake(serve_config(settings)).run(announce=lambda ready: print("ready", ready.push, flush=True))


def raw(directory: str, num_bytes: int) -> None:
    """Answers once after each `num_bytes` of payload."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        router.bind(f"ipc://{directory}.sock")
        print("ready", router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
        threading.Thread(target=lambda: sys.stdin.read() or context.destroy(0), daemon=True).start()
        target, at = memoryview(bytearray(num_bytes)), 0
        while True:
            identity, _, payload = router.recv_multipart(copy=False)
            target[at : at + len(payload)] = payload.buffer
            at += len(payload)
            if at == num_bytes:
                at = 0
                router.send_multipart([identity, b"done"])


def main() -> None:
    kind, directory, num_bytes = sys.argv[1:]
    if kind == "raw":
        raw(directory, int(num_bytes))
    else:
        asyncio.run(intake(directory, kind == "lent"))


if __name__ == "__main__":
    main()
