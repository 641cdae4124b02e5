"""The sending ends of benchmarks/remote.py and same_host.py: a model, a real `Client` that pushes it, and raw pyzmq."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import zmq

from rankd.auth import Keyring
from rankd.auth.keyring import new_pair
from rankd_client import Client
from rankd_client.link.dealer import OPTIONS
from rankd_client.wire import DEFAULT_CHUNK_BYTES, Chunk, encode

FLUSH_SECONDS = 60.0
Weights = dict[str, torch.Tensor]

Send = Callable[[], float]
"""Ships all of it once and returns the seconds that it took."""


def make_weights(num_bytes: int, shape: tuple[int, int]) -> Weights:
    """As many bfloat16 matrices as have so many bytes together."""
    generator = torch.Generator().manual_seed(0)
    num_layers = num_bytes // (2 * shape[0] * shape[1])
    return {f"layer.{n}": torch.randn(shape, generator=generator).bfloat16() for n in range(num_layers)}


@contextlib.contextmanager
def pushed(
    address: str, weights: Weights, path: str, key: Path | None = None, pause_seconds: float = 0.0
) -> Iterator[Send]:
    """From the return of a push until all of it was recorded. By `path`, from the second push on: the first, which
    connects and allocates, is done. `pause_seconds`: before each push, not counted."""
    num_bytes = sum(2 * weight.numel() for weight in weights.values())
    with Client(
        "bench", address, max_overhead=None, max_push_bytes=num_bytes, echo=False, strict=True, key=key
    ) as client:

        def send() -> float:
            time.sleep(pause_seconds)
            receipt = client.push(weights)
            started = time.perf_counter()
            if receipt.num_queued != len(weights) or not client.flush(FLUSH_SECONDS):
                raise RuntimeError(f"{receipt.num_queued} of {len(weights)} queued, and not all of them recorded")
            return time.perf_counter() - started

        send()
        assert client.stats.path == path, client.stats
        yield send


@contextlib.contextmanager
def sent_raw(address: str, weights: Weights, keys: Path | None = None) -> Iterator[Send]:
    """By pyzmq's DEALER with the client's options, in chunks of the daemon's size behind a header each, until an answer
    is back."""
    payloads: list[memoryview] = []
    for weight in weights.values():
        whole = memoryview(weight.view(torch.uint8).numpy().data).cast("B")
        payloads += [whole[at : at + DEFAULT_CHUNK_BYTES] for at in range(0, len(whole), DEFAULT_CHUNK_BYTES)]
    rows, cols = next(iter(weights.values())).shape
    header = encode(Chunk("layer", 0, "bfloat16", (rows, cols), 2 * rows * cols, 0, payloads[0]))[0]
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
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

        yield send
