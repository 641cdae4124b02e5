"""The training loop is sacred: with a daemon, without one, or with one that dies or hangs, it goes on unchanged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch

from rankd_client import Client, PushReceipt

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0

# For each kind of training a digest of all that a bystander must not change: results, and the state of each source of
# randomness. Arguments: ways to use the client, the daemon's URL, kinds of training.
TRAIN = """
import hashlib, pickle, random, sys
import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

def watched(use, url, model, optimizer):
    "What is called after each step; and the client."
    from rankd_client import Client
    client = Client("sacred", url, max_overhead=None, strict=True, dtype="int8" if use == "int8" else "bfloat16")
    if use == "attach":
        client.attach(model, optimizer, every=1)
        return client, lambda step, inputs: client.fence()
    if use == "also":
        return client, lambda step, inputs: client.push(model, step=step, also={"inputs": inputs})
    if use == "elsewhere":
        return client, lambda step, inputs: client.push(model, step=step)
    def push(step, inputs):
        receipt = client.push(model, step=step)
        reasons = {"fewer than 2 dimensions", "memory"}  # as long as what was sent before is not let go of
        assert set(receipt.skipped.values()) <= reasons, receipt
    return client, push

def train(use, url, kind):
    torch.manual_seed(0); random.seed(0); np.random.seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.2), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=kind == "scaler")
    client, after = watched(use, url, model, optimizer) if use != "none" else (None, lambda step, inputs: None)
    forward = torch.compile(model, backend="eager") if kind == "compile" else model
    losses, num_micro = [], 3 if kind == "accumulate" else 1
    for step in range(20):
        optimizer.zero_grad()
        for _ in range(num_micro):
            inputs = torch.randn(8, 16) + random.random() + np.random.rand()
            with torch.autocast("cpu", torch.bfloat16, enabled=kind in ("autocast", "scaler")):
                outputs = checkpoint(forward, inputs, use_reentrant=False) if kind == "checkpoint" else forward(inputs)
                loss = outputs.float().square().mean()
            if kind == "scaler" and step % 7 == 3:
                loss = loss * float("inf")  # the step is skipped
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        after(step, inputs)
    if client is not None:
        assert client.num_errors == 0
        assert use == "elsewhere" or client._pusher._link is not None  # something was pushed
        if "alive" in sys.argv:
            assert client.flush(60.0)
        client.close()
    tensors = [tensor for p in model.parameters() for tensor in (p.detach(), p.grad, *optimizer.state[p].values())]
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state().tolist(), torch.get_num_threads()]
    versions = [(parameter._version, parameter.requires_grad) for parameter in model.parameters()]
    everything = [losses, [tensor.numpy().tobytes() for tensor in tensors], states, versions, torch.is_grad_enabled()]
    print(kind, hashlib.sha256(pickle.dumps(everything)).hexdigest())

torch.use_deterministic_algorithms(True)
torch.set_num_threads(2)
for use in sys.argv[1].split(","):
    for kind in sys.argv[3].split(","):
        train(use, sys.argv[2], kind)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RANKD_")}
    return {**kept, **more}


def run(program: str, *arguments: str, module: Any = fork_server, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; one that hangs, or fails, fails the test."""
    done = module.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.long
def test_results_and_randomness_are_the_same_to_the_bit(serve: Any, directory: Path) -> None:
    kinds = "plain,accumulate,checkpoint,autocast,scaler"
    alone = run(TRAIN, "none", "", f"{kinds},compile").stdout.splitlines()
    assert len(set(alone)) == 6 and alone[0].startswith("plain ")
    nobody = f"ipc://{directory}/nobody"
    assert run(TRAIN, "attach", nobody, f"{kinds},compile").stdout.splitlines() == alone
    assert run(TRAIN, "push,also,int8", nobody, "plain,accumulate").stdout.splitlines() == 3 * alone[:2]
    assert run(TRAIN, "push", serve().url, kinds, "alive").stdout.splitlines() == alone[:5]
    # Nothing listens there, and another process of the job pushes.
    others = run(TRAIN, "elsewhere", "tcp://127.0.0.1:9", "plain", RANK="1", WORLD_SIZE="2")
    assert others.stdout.splitlines() == alone[:1]


# What a script leaves behind when it just ends: no close(), no with.
FORGETFUL = """
import sys, torch
from rankd_client import Client

client = Client("forgetful", sys.argv[1], max_overhead=None, strict=True)
model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(16)))
for step in range(int(sys.argv[2])):
    client.push(model, step=step)
if len(sys.argv) > 3:
    assert client.flush(60.0)
    print("flushed", flush=True)
    sys.stdin.readline()
    for step in range(100, 130):
        assert client.push(model, step=step).num_queued > 0
"""


@pytest.mark.parametrize("url", ["ipc://{directory}/nobody", "tcp://127.0.0.1:9"])
def test_the_interpreter_ends_where_no_daemon_is(directory: Path, url: str) -> None:
    run(FORGETFUL, url.format(directory=directory), "20", module=subprocess)


def test_the_interpreter_ends_and_what_was_pushed_arrives(serve: Any) -> None:
    served = serve("--log-level", "info")
    run(FORGETFUL, served.url, "1")
    assert "peer left" in served.log.read_text()  # it said bye, after what it had to send


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_the_interpreter_ends_where_the_daemon_hangs_or_was_killed(serve: Any, signum: signal.Signals) -> None:
    served = serve()
    trainer = fork_server.Popen(
        [sys.executable, "-c", FORGETFUL, served.url, "3", "wait"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert trainer.stdout is not None and trainer.stdout.readline() == "flushed\n"
        served.process.send_signal(signum)
        _, errors = trainer.communicate("go on\n", timeout=WAIT_SECONDS)
        assert trainer.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        trainer.kill()
        trainer.wait()
        if signum == signal.SIGSTOP:
            served.process.send_signal(signal.SIGCONT)
        else:
            served.process.wait(WAIT_SECONDS)


def test_a_daemon_that_was_killed_and_comes_back_gets_what_is_newest(serve: Any) -> None:
    model = {"w": torch.randn(64, 64), "v": torch.randn(64, 64)}
    first = serve()
    with Client("back", first.url, max_overhead=None, strict=True) as client:
        client.push(model)
        assert client.flush(WAIT_SECONDS)
        first.process.kill()
        first.process.wait(WAIT_SECONDS)
        receipts = [client.push(model) for _ in range(50)]
        assert all(receipt.num_queued == 2 for receipt in receipts)
        assert not client.flush(0.1)
        serve()
        assert client.flush(WAIT_SECONDS)
        assert client.connected and client.num_errors == 0


def test_a_daemon_that_stands_still_holds_nothing_up(serve: Any) -> None:
    model = {str(i): torch.randn(512, 512) for i in range(16)}
    served = serve()
    with Client("still", served.url, max_overhead=None, strict=True, max_push_bytes=8 << 20) as client:
        client.push(model)
        assert client.flush(WAIT_SECONDS)
        served.process.send_signal(signal.SIGSTOP)
        try:
            receipts: list[PushReceipt] = [client.push(model) for _ in range(200)]
        finally:
            served.process.send_signal(signal.SIGCONT)
        assert sum(receipt.num_queued for receipt in receipts) > 0
        assert sum(receipt.num_replaced + receipt.num_dropped for receipt in receipts) > 0
        assert client.push(model).step == 201
        assert client.flush(WAIT_SECONDS)


# Prints how much the process grew, in bytes, over 600 pushes to nobody.
GROWTH = """
import sys, torch
from rankd_client import Client

def resident_bytes():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))

torch.set_num_threads(1)
model = {str(i): torch.randn(256, 256) for i in range(64)}
client = Client("growth", sys.argv[1], max_overhead=None, strict=True, max_push_bytes=4 << 20)
before = resident_bytes()
for step in range(600):
    client.push(model, step=step)
print(resident_bytes() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("url", ["ipc://{directory}/nobody", "tcp://127.0.0.1:9"])
def test_memory_is_bounded_over_hundreds_of_pushes_to_nobody(directory: Path, url: str) -> None:
    """8 MiB of arena, 2.4 GiB of snapshots; what else is allowed is for ZeroMQ, torch's first copies and Python."""
    grown_bytes = int(run(GROWTH, url.format(directory=directory)).stdout)
    assert grown_bytes <= (8 << 20) + (24 << 20)
