"""A trainer that pushes on a thread of its own while a test does harm, and what a history has of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rankd.store.reader import Reader
from rankd_client import Client

PERIOD = 200
LAYERS = frozenset("abc")


def weights(step: int, size: int = 16) -> dict[str, torch.Tensor]:
    """All of one number, which tells the step and is exact in bfloat16."""
    return {layer: torch.full((size, size), 1.0 + step % PERIOD) for layer in sorted(LAYERS)}


class Pushing:
    """`step`: the last one that was pushed. `newest`: of each layer, the last step that was queued: where memory is
    short, as while ZeroMQ holds what was sent, a push leaves layers out."""

    def __init__(self, client: Client, size: int, interval_seconds: float) -> None:
        self.step = -1
        self.newest: dict[str, int] = {}
        self.error: BaseException | None = None
        self._client, self._size, self._interval_seconds = client, size, interval_seconds
        self._stopped = threading.Event()
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self, num_pushes: int, seconds: float = 60.0) -> None:
        """Until so many more pushes have returned."""
        with self._moved:
            until = self.step + num_pushes
            assert self._moved.wait_for(lambda: self.step >= until or self.error, seconds), "a push does not return"
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._interval_seconds):
                receipt = self._client.push(weights(self.step + 1, self._size), step=self.step + 1)
                with self._moved:
                    self.step += 1
                    self.newest |= dict.fromkeys(LAYERS - receipt.skipped.keys(), self.step)
                    self._moved.notify_all()
        except BaseException as error:
            with self._moved:
                self.error = error
                self._moved.notify_all()


@contextmanager
def pushing(client: Client, size: int = 16, interval_seconds: float = 0.002) -> Iterator[Pushing]:
    """Pushes until the block ends; what it raised is raised there."""
    trainer = Pushing(client, size, interval_seconds)
    try:
        yield trainer
    finally:
        trainer.stop()


def steps_recorded(data: Path, run: str, size: int = 16) -> dict[str, list[int]]:
    """Layer → the steps that its history has, in the order of recording; each must have that step's values."""
    steps: dict[str, list[int]] = {}
    with Reader(data) as reader:
        for _, row in reader.measurements(run):
            assert row.step is not None
            norm, exact = row.metrics["frobenius_norm"], size * (1.0 + row.step % PERIOD)
            assert norm is not None and abs(norm - exact) < 1e-4 * exact, (row.layer, row.step, norm)
            steps.setdefault(row.layer, []).append(row.step)
    return steps
