"""The trainer of benchmarks/tap_memory.py, a process of its own, because what is judged is what this process grows by.

    python benchmarks/_tap_trainer.py URL PUSHES INTERVAL

Pushes once and prints `ready` when that is recorded; waits for a line on stdin; then pushes PUSHES times, INTERVAL
seconds apart, and prints what became of it as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import zmq

from rankd_client import Client

NUM_LAYERS, ROWS, COLS = 8, 256, 512
"""4 MiB of float32."""

SAMPLE_PUSHES = 20
FLUSH_SECONDS = 60.0


def resident_bytes() -> dict[str, int]:
    """Resident memory, and its parts: a memfd's pages count as shared ones."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in lines if words and words[0].startswith(("VmRSS", "Rss"))}


def num_threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def open_files() -> dict[str, str]:
    """Number → what it is, of everything open but the directory that is being read."""
    links = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue
    return links


def held_files() -> set[str]:
    """Files that are open or mapped, by the names that directories have for them; libraries are left out."""
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    paths = {Path(name) for name in mapped | set(open_files().values()) if name.startswith("/")}
    return {str(path) for path in paths if path.is_file() and ".so" not in path.name and path.parts[1] != "proc"}


def start_collector() -> None:
    """pyzmq's own thread for messages that are not copied, with a context of its own: one for all who use pyzmq in a
    process, and only ended with it, so it is no client's to take along."""
    zmq.Frame(bytes(2 * zmq.COPY_THRESHOLD), copy=False)


def train(client: Client, model: dict[str, torch.Tensor], num_pushes: int, interval_seconds: float) -> dict[str, Any]:
    """What was seen from the outside: the largest resident memory, times, counts."""
    peak, blocked, num_connected = resident_bytes(), [], 0
    counts = dict.fromkeys(("num_queued", "num_replaced", "num_dropped"), 0)
    next_at = time.monotonic()
    for step in range(1, num_pushes + 1):
        for weight in model.values():
            weight.mul_(1.0001)
        receipt = client.push(model, step=step)
        blocked.append(receipt.blocked_seconds)
        counts = {key: counts[key] + getattr(receipt, key) for key in counts}
        num_connected += client.connected
        if step % SAMPLE_PUSHES == 0:
            peak = max(peak, resident_bytes(), key=lambda sample: sample["VmRSS"])
        next_at = max(next_at + interval_seconds, time.monotonic())
        time.sleep(max(0.0, next_at - time.monotonic()))
    blocked.sort()
    times = {"median_blocked": blocked[len(blocked) // 2], "p99_blocked": blocked[len(blocked) * 99 // 100]}
    return {"peak": peak, "connected": num_connected / num_pushes, **counts, **times, "slowest_blocked": blocked[-1]}


def main(url: str, num_pushes: int, interval_seconds: float) -> None:
    torch.set_num_threads(1)
    model = {f"layer{index}": torch.randn(ROWS, COLS) for index in range(NUM_LAYERS)}
    for weight in model.values():
        weight.mul_(1.0)
    memory = resident_bytes()
    start_collector()
    python_threads = threading.enumerate()
    threads, files, paths = num_threads(), open_files(), held_files()
    client = Client("tap-memory", url, max_overhead=None, strict=True, echo=False)
    client.push(model, step=0)
    if not client.flush(FLUSH_SECONDS):
        raise RuntimeError("no daemon took the first push")
    print("ready", flush=True)
    sys.stdin.readline()
    seen = train(client, model, num_pushes, interval_seconds)
    assert client._pusher is not None
    arena_bytes = client._pusher._outbox.arena.num_bytes
    made = held_files() - paths
    client.close(timeout=1.0)
    peak = seen.pop("peak")
    outcome = {
        "grown_bytes": peak["VmRSS"] - memory["VmRSS"],
        "grown_parts": {key: peak[key] - memory[key] for key in peak if key != "VmRSS"},
        "arena_bytes": arena_bytes,
        "num_errors": client.num_errors,
        "threads_left": num_threads() - threads,
        "python_threads_left": [thread.name for thread in threading.enumerate()[1:] if thread not in python_threads],
        "files_open": sorted(set(open_files().items()) - set(files.items())),
        "files_left": sorted(path for path in made if Path(path).exists()),
    }
    print(json.dumps({**outcome, **seen}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
