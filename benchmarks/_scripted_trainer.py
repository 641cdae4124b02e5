"""A trainer process: pushes the scripted model until its stdin ends. Run by kills.py.

    python benchmarks/_scripted_trainer.py URL RUN NUM_LAYERS PAUSE_SECONDS LOG

LOG gets a line `push STEP LAYER` for each snapshot taken by a push and `recorded STEP LAYER` or `superseded STEP LAYER`
for each acknowledgement as it arrives. At the end one JSON object goes to stdout.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from _scripted import ScriptedModel, step_of

import rankd_client.link.conversation as conversation
from rankd_client import Client
from rankd_client.wire import Ack

LAST_FLUSH_SECONDS = 60.0
BURST = (7, 8)
"""Of ten pushes, these do not wait until they are recorded: the next one may overtake them."""


def log_acknowledgements(log: TextIO) -> None:
    """Write down what the client is told, before it acts on it. Nothing is changed on the way."""
    decode = conversation.decode

    def listen(frames: Sequence[Any]) -> Any:
        message = decode(frames)
        if isinstance(message, Ack) and message.state != "received":
            log.write(f"{message.state} {message.step} {message.layer}\n")
        return message

    conversation.decode = listen


def main() -> None:
    url, run, num_layers, pause_seconds, path = sys.argv[1:]
    torch.set_num_threads(1)
    model = ScriptedModel(int(num_layers))
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    with Path(path).open("w", buffering=1) as log:
        log_acknowledgements(log)
        client = Client(run, url, max_overhead=None, dtype="float32", echo=False)
        index = 0
        while not stop.is_set():
            step = step_of(index)
            weights = model.weights(index)
            log.writelines(f"push {step} {layer}\n" for layer in weights)
            receipt = client.push(weights, step=step)
            if receipt.num_queued != len(weights):
                raise RuntimeError(f"step {step}: {receipt}")
            if index % 10 not in BURST:
                while not client.flush(0.5) and not stop.is_set():
                    pass
                stop.wait(float(pause_seconds))
            index += 1
        flushed = client.flush(LAST_FLUSH_SECONDS)
        client.close()
    print(json.dumps({"num_pushes": index, "num_errors": client.num_errors, "flushed": flushed}))


if __name__ == "__main__":
    main()
