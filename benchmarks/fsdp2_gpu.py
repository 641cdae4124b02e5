"""What watching costs an FSDP2 job on two GPUs, and whether its spectra are those of the unsharded weights.

    torchrun --nproc-per-node 2 benchmarks/fsdp2_gpu.py              # two GPUs, NCCL: about 5 minutes on 2 × H100
    torchrun --nproc-per-node 2 benchmarks/fsdp2_gpu.py --device cpu --tiny    # gloo: does it run

A GPT-2-medium in `fully_shard` with bfloat16 mixed precision and fused AdamW. Blocks of steps in which each process
pushes its shards every 10 steps alternate with blocks without, in one run; the daemon measures on two cores of the same
host. `fsdp2_step_time` is the median over the pairs of what a step took longer by the wall clock, as a share of a plain
one, with its 95 % interval. Then all layers are pushed as float32 to a daemon that measures exactly, and compared with
the spectra of the gathered weights, in float64. One JSON line a row, by process 0; the exit code says whether the
limits were kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _daemon import Daemon, clean_environment
from _report import Report
from _tap_pairs import median_interval
from _tap_training import GPT2, TINY, Size
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional

from rankd_client import Client

GPT2_MEDIUM = Size(vocabulary=50304, context=1024, width=1024, num_blocks=24, num_heads=16, batch=8)
"""355 M parameters; the batch is each process's."""

EVERY = 10
LOSS_LIMIT, ERROR_LIMIT = 0.01, 1e-5
DAEMON_CORES = 2
FLUSH_SECONDS = 600.0
CHECK_BYTES = 128 << 20
"""Of one push of the check, in each process: half of the embedding's float32, which is the largest, fits."""

METRICS = ("spectral_norm", "frobenius_norm", "stable_rank", "effective_rank")


class Training:
    """One process's part of the job; its tokens are its own."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.size, self.device, self.num_steps = size, device, 0
        self.model: Any = GPT2(size).to(device)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in self.model.h:
            fully_shard(block, mp_policy=policy)
        fully_shard(self.model, mp_policy=policy)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
        self._generator = torch.Generator(device).manual_seed(dist.get_rank())

    def step(self) -> None:
        shape = self.size.batch, self.size.context + 1
        tokens = torch.randint(self.size.vocabulary, shape, device=self.device, generator=self._generator)
        logits = self.model(tokens[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1

    def meet(self) -> None:
        """All processes, with nothing under way on their devices."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        dist.barrier()


def block(training: Training, num_steps: int, client: Client | None) -> tuple[float, list[float]]:
    """Seconds a step, and what the host waited in each due push."""
    training.meet()
    started, blocked = time.perf_counter(), []
    for _ in range(num_steps):
        training.step()
        if client is not None:
            receipt = client.push(training.model, training.num_steps)
            blocked += [receipt.blocked_seconds] if receipt.num_queued else []
    training.meet()
    return (time.perf_counter() - started) / num_steps, blocked


@contextmanager
def daemon_of(directory: Path | None, name: str, config: str, num_cores: int) -> Iterator[str]:
    """The URL of a daemon that process 0 starts, in every process. `num_cores` 0: all."""
    told: list[Any] = [None]
    daemon = None
    if directory is not None:
        (directory / name).mkdir()
        daemon = Daemon(directory / name, config)
        daemon.start()
        daemon.wait_ready()
        cores = sorted(os.sched_getaffinity(0))
        if 0 < num_cores < len(cores):
            os.sched_setaffinity(daemon.pid, cores[-num_cores:])
        told = [daemon.url]
    dist.broadcast_object_list(told)
    try:
        yield told[0]
        dist.barrier()
    finally:
        if daemon is not None:
            daemon.close()


def connect(url: str, run: str, training: Training, **options: Any) -> Client:
    """A client that has pushed once, and is known to the daemon; what is done once and for all is done."""
    client = Client(run, url, max_overhead=None, echo=False, strict=True, **options)
    client.attach(training.model, training.optimizer)
    client.push(training.model, 0)
    if not client.flush(FLUSH_SECONDS):
        raise RuntimeError(f"{run}: the daemon has not recorded the first push")
    return client


def cost(training: Training, report: Report, url: str, num_pairs: int, num_steps: int, more: dict[str, Any]) -> None:
    client = connect(url, "fsdp2", training, every_steps=EVERY, max_push_bytes=1 << 30)
    block(training, num_steps, client)
    pairs, blocked = [], []
    for index in range(num_pairs):
        took: dict[bool, float] = {}
        for watched in (index % 2 == 0, index % 2 == 1):
            took[watched], waited = block(training, num_steps, client if watched else None)
            blocked += waited
        pairs.append((took[True], took[False]))
    client.close()
    plain = statistics.median(seconds for _, seconds in pairs)
    share, low, high = median_interval([(ours - theirs) / plain for ours, theirs in pairs])
    blocked.sort()
    told = {"low": round(low, 5), "high": round(high, 5), "plain_ms": round(1000 * plain, 3), "pairs": num_pairs}
    told |= {"blocked_median_ms": round(1000 * statistics.median(blocked), 3), "pushes": len(blocked)}
    told |= {"blocked_max_ms": round(1000 * blocked[-1], 3), "every": EVERY, "steps_per_block": num_steps}
    if dist.get_rank() == 0:
        report.row("fsdp2_step_time", round(share, 5), LOSS_LIMIT, "share", **told, **more)


def check(training: Training, report: Report, url: str, data: Path | None, more: dict[str, Any]) -> None:
    """Layers take turns, several of them, until all have gone; then every weight is gathered, which the pushes are not
    part of."""
    client = connect(url, "check", training, dtype="float32", max_push_bytes=CHECK_BYTES)
    turns = 2 + sum(p.numel() * 4 for p in training.model.parameters()) // CHECK_BYTES
    for step in range(1, turns + 1):
        client.push(training.model, step)
        if not client.flush(FLUSH_SECONDS):
            raise RuntimeError("check: not all shards were recorded")
    client.close()
    truth = {}
    for name, parameter in training.model.named_parameters():
        whole = parameter.full_tensor().detach()
        if data is not None and whole.dim() > 1:
            truth[name] = metrics(whole)
    if data is None:
        return
    rows: dict[str, dict[str, Any]] = {row["layer"]: row for row in query("check", data)}
    missing = sorted(truth.keys() - rows.keys())
    errors = {
        metric: max(abs(rows[name][metric] / truth[name][metric] - 1) for name in rows.keys() & truth.keys())
        for metric in METRICS
    }
    report.row("fsdp2_spectra_missing", len(missing), 0, "layers", layers=len(truth), names=missing[:5], **more)
    report.row("fsdp2_spectra_error", max(errors.values()), ERROR_LIMIT, "relative", errors=errors, **more)


def metrics(weight: Tensor) -> dict[str, float]:
    """By the eigenvalues of the smaller Gram matrix in float64: of the largest singular value 1e-15, of what is below
    1e-8 of it nothing, which no metric here would show."""
    matrix = weight.double()
    matrix = matrix if matrix.shape[0] > matrix.shape[1] else matrix.T
    squares = torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=0)
    sigma = squares.sqrt()
    share = sigma / sigma.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return {
        "spectral_norm": float(sigma[-1]),
        "frobenius_norm": float(squares.sum().sqrt()),
        "stable_rank": float(squares.sum() / squares[-1]),
        "effective_rank": float(entropy.exp()),
    }


def query(run: str, data: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "rankd", "query", run, "--json", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps: does it run")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2 * EVERY, help="of a block: short ones see the same drift")
    parser.add_argument("--cost-only", action="store_true", help="no comparison of spectra, which takes a minute")
    parser.add_argument("--daemon-cores", type=int, default=DAEMON_CORES, help="of the daemon that is timed; 0: all")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", dist.get_node_local_rank()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    training = Training(TINY if arguments.tiny else GPT2_MEDIUM, device)
    num_pairs, num_steps = (2, EVERY) if arguments.tiny else (arguments.pairs, arguments.steps)
    num_elements = sum(parameter.numel() for parameter in training.model.parameters())
    more = {"device": name, "processes": dist.get_world_size(), "torch": torch.__version__, "parameters": num_elements}
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rk") as path:
        directory = Path(path) if dist.get_rank() == 0 else None
        with daemon_of(directory, "t", "", arguments.daemon_cores) as url:
            for _ in range(3):
                training.step()
            cost(training, report, url, num_pairs, num_steps, more)
        if not arguments.cost_only:
            with daemon_of(directory, "e", '[measure]\ntier = "exact"\n', 0) as url:
                check(training, report, url, None if directory is None else directory / "e" / "data", more)
    dist.barrier()
    dist.destroy_process_group()
    return 0 if arguments.tiny else report.exit_code  # how long such small steps take says nothing


if __name__ == "__main__":
    raise SystemExit(main())
