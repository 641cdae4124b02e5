"""What a push costs the training loop: time blocked, and memory where nobody takes what is pushed.

One round is, one after the other in this process: a single-threaded memcpy of all the fp32 weights (ctypes.memmove into
a buffer that was touched before), a due push of them to nobody, and `torch.linalg.svdvals` of one block's matrices.
There are as many rounds as blocks, so the rival's cost is that of all matrices, measured whole. The same rounds follow
with a living daemon that measures what it gets, on the same cores. Pushes to nobody with a scale per row are timed
beside those as bfloat16. Prints one JSON line a row: `ours` and `rival` are medians (svdvals: a sum over all blocks);
`ratio`, ours over the rival's, is to be at most `limit`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankd.cli.processes import private_daemon
from rankd_client import Client

WIDTH = 768
NUM_BLOCKS = 16  # 113 M parameters in 64 matrices, 453 MB; 192 tensors with the vectors
OVERHEAD_SECONDS, STEP_SECONDS = 30.0, 0.02
LARGE_STEP_SECONDS = 0.168
RSS_SLACK_BYTES = 32 << 20
"""ZeroMQ, torch's first copies and Python's own: what grows once, whatever is pushed."""

MACHINE = {
    "system": platform.system(),
    "processor": platform.machine(),
    "cores": os.cpu_count(),
    "torch": torch.__version__,
}


def blocks() -> list[dict[str, torch.Tensor]]:
    """GPT-2's blocks: four matrices and eight vectors each."""
    generator = torch.Generator().manual_seed(0)
    matrices = {
        "attn.c_attn.weight": (WIDTH, 3 * WIDTH),
        "attn.c_proj.weight": (WIDTH, WIDTH),
        "mlp.c_fc.weight": (WIDTH, 4 * WIDTH),
        "mlp.c_proj.weight": (4 * WIDTH, WIDTH),
    }
    vectors = dict.fromkeys(("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"), WIDTH)
    vectors |= {"attn.c_attn.bias": 3 * WIDTH, "attn.c_proj.bias": WIDTH}
    vectors |= {"mlp.c_fc.bias": 4 * WIDTH, "mlp.c_proj.bias": WIDTH}
    made = []
    for index in range(NUM_BLOCKS):
        block = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in matrices.items()}
        block |= {name: torch.zeros(size) for name, size in vectors.items()}
        made.append({f"h.{index}.{name}": tensor for name, tensor in block.items()})
    return made


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Memcpy:
    """Copies the matrices of a model, byte for byte, into one buffer."""

    def __init__(self, model: dict[str, torch.Tensor]) -> None:
        self.sources = [(t.data_ptr(), t.numel() * t.element_size()) for t in model.values() if t.dim() > 1]
        self.num_bytes = sum(size for _, size in self.sources)
        self.buffer = torch.zeros(self.num_bytes, dtype=torch.uint8)

    def __call__(self) -> None:
        at = self.buffer.data_ptr()
        for source, size in self.sources:
            ctypes.memmove(at, source, size)
            at += size


def push_whole(client: Client, model: dict[str, torch.Tensor]) -> float:
    """Seconds blocked, as the caller sees them, in a push of everything."""
    started = time.perf_counter()
    receipt = client.push(model)
    blocked_seconds = time.perf_counter() - started
    if receipt.num_queued != 4 * NUM_BLOCKS:
        raise RuntimeError(f"{receipt.num_queued} of {4 * NUM_BLOCKS} matrices queued: {receipt.skipped}")
    return blocked_seconds


def print_row(name: str, ours: float, rival: float, limit: float, unit: str, **more: Any) -> None:
    ratio = ours / rival
    row = {"name": name, "ours": ours, "rival": rival, "ratio": ratio, "limit": limit, "ok": ratio <= limit}
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps({**rounded, "unit": unit, **more, "machine": MACHINE}, ensure_ascii=False), flush=True)


def compare(daemon: str, url: str, parts: list[dict[str, torch.Tensor]]) -> None:
    """The rows for one kind of daemon."""
    model = {name: tensor for part in parts for name, tensor in part.items()}
    memcpy = Memcpy(model)
    copied, pushed, rival_seconds = [], [], 0.0
    with Client("push-cost", url, max_overhead=None, max_push_bytes=1 << 30, echo=False, strict=True) as client:
        push_whole(client, model)  # allocates, connects
        memcpy()
        for part in parts:
            copied.append(seconds(memcpy))
            pushed.append(push_whole(client, model))
            rival_seconds += sum(seconds(partial(torch.linalg.svdvals, t)) for t in part.values() if t.dim() > 1)
        if client.connected != (daemon == "alive"):
            raise RuntimeError(f"the daemon, to be {daemon}, is not")
    ours = statistics.median(pushed)
    more = {"bytes": memcpy.num_bytes, "rounds": len(parts)}
    rival = "memcpy of the same fp32 bytes, one thread"
    print_row(f"push_{daemon}_vs_memcpy", ours, statistics.median(copied), 1.0, "seconds", rival_is=rival, **more)
    rival = "torch.linalg.svdvals of the same matrices in the loop, one thread"
    print_row(f"push_{daemon}_vs_svdvals", ours, rival_seconds, 0.01, "seconds", rival_is=rival, **more)


def compare_dtypes(url: str, parts: list[dict[str, torch.Tensor]]) -> None:
    """The rows of pushes with a scale per row, beside those of the default dtype, in turn."""
    model = {name: tensor for part in parts for name, tensor in part.items()}
    memcpy = Memcpy(model)
    options: dict[str, Any] = {"max_overhead": None, "max_push_bytes": 1 << 30, "echo": False, "strict": True}
    with Client("bfloat16", url, **options) as plain:
        push_whole(plain, model)
        for dtype, limit in (("int8", 4.0), ("float8_e4m3fn", 8.0)):
            with Client(dtype, url, dtype=dtype, **options) as scaled:
                push_whole(scaled, model)
                pairs = [(push_whole(scaled, model), push_whole(plain, model)) for _ in parts]
            ours, rival = map(statistics.median, zip(*pairs, strict=True))
            more = {"bytes": memcpy.num_bytes, "rounds": len(parts), "rival_is": "the same push as bfloat16"}
            print_row(f"push_{dtype}", ours, rival, limit, "seconds", **more)


def not_due(url: str, model: dict[str, torch.Tensor], num_calls: int = 10_000) -> None:
    """A push that is not due: the price of calling push at every step."""
    with Client("not-due", url, every_steps=1 << 40, max_overhead=None, echo=False, strict=True) as client:
        client.push(model)
        calls = [seconds(partial(client.push, model)) for _ in range(num_calls)]
    print_row(
        "push_not_due", statistics.median(calls), 20e-6, 1.0, "seconds", calls=num_calls, rival_is="20 µs, the goal"
    )


def overhead(url: str, model: dict[str, torch.Tensor]) -> None:
    """The share of a training's time that pushes take at the default `max_overhead`, each call timed from outside.

    The work between them leaves the caches cold. The first push, which allocates, and calls that push nothing are told
    apart.
    """
    matrix = torch.randn(512, 512)
    first, pushing, passing = 0.0, [], []
    with Client("overhead", url) as client:
        started = time.perf_counter()
        for step in range(int(OVERHEAD_SECONDS / STEP_SECONDS)):
            until = time.perf_counter() + STEP_SECONDS
            while time.perf_counter() < until:
                matrix @ matrix
            before = time.perf_counter()
            receipt = client.push(model, step=step)
            blocked = time.perf_counter() - before
            if step == 0:
                first, started = blocked, time.perf_counter()
            else:
                (pushing if receipt.num_queued else passing).append(blocked)
        share = sum(pushing) / (time.perf_counter() - started)
    more = {"pushes": len(pushing), "first_push_seconds": round(first, 3)}
    more["seconds_of_a_call_that_pushes_nothing"] = round(statistics.median(passing), 6)
    print_row("push_share_of_time", share, 0.005, 1.0, "share", **more, rival_is="max_overhead, the default")


def beside_training(url: str, num_layers: int = 98, num_pushes: int = 30) -> None:
    """Processor time of the client's own thread: of a training that its host bounds, each bit of it is lost."""
    model = {f"layer {index}": torch.randn(64, 64) for index in range(num_layers)}
    options: dict[str, Any] = {"max_overhead": None, "echo": False, "strict": True}
    with Client("beside", url, **options) as client:
        client.push(model, 0)
        client.flush()
        (link,) = (thread for thread in threading.enumerate() if thread.name == "rankd-link")
        before = processor_seconds(link)
        for step in range(1, num_pushes + 1):
            client.push(model, step)
            time.sleep(10 * LARGE_STEP_SECONDS / 4)
        ours = (processor_seconds(link) - before) / num_pushes
        more = {"layers": num_layers, "path": client.stats.path}
    rival = "1 % of ten steps of 168 ms, those of a GPT-2-medium in FSDP2"
    print_row(
        "link_processor_time_a_push", ours, 0.01 * 10 * LARGE_STEP_SECONDS, 1.0, "seconds", rival_is=rival, **more
    )


def processor_seconds(thread: threading.Thread) -> float:
    """That it took so far, in hundredths."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def growth(url: str, model: dict[str, torch.Tensor], num_pushes: int) -> None:
    """Resident memory over many pushes to nobody, against the budget that was configured."""
    budget_bytes = 32 << 20
    client = Client("growth", url, max_overhead=None, max_push_bytes=budget_bytes // 2, echo=False, strict=True)
    with client:
        before = resident_bytes()
        wire_bytes = sum(client.push(model).wire_bytes for _ in range(num_pushes))
        grown = resident_bytes() - before
    limit = (budget_bytes + RSS_SLACK_BYTES) / budget_bytes
    more = {"pushes": num_pushes, "pushed_bytes": wire_bytes, "rival_is": "max_memory_bytes"}
    print_row("rss_growth_dead_daemon", float(grown), float(budget_bytes), limit, "bytes", **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=2000, help="of the memory row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = blocks()
    with tempfile.TemporaryDirectory() as nowhere:
        growth(f"ipc://{nowhere}", {name: t for part in parts[:4] for name, t in part.items()}, arguments.pushes)
        not_due(f"ipc://{nowhere}", parts[0])
        compare("dead", f"ipc://{nowhere}", parts)
        compare_dtypes(f"ipc://{nowhere}", parts)
    with private_daemon() as url:
        overhead(url, {name: t for part in parts[:4] for name, t in part.items()})
        compare("alive", url, parts)
        beside_training(url)


if __name__ == "__main__":
    main()
