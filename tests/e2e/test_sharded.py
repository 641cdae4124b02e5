"""Sharded jobs of several processes, against a real daemon: what it measures is what the whole weights would have been
measured as, and nobody waits for a process that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
import zmq
from sharded_job import STEP

from rankd_client import Client, subscribe
from rankd_client.wire import Query, decode_reply, encode_query

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 120.0
JOB = Path(__file__).parent.parent / "support" / "sharded_job.py"
RTOL = 1e-5
METRICS = ("spectral_norm", "frobenius_norm", "stable_rank", "effective_rank", "participation_ratio", "nuclear_norm")

Row = dict[str, Any]
Weights = dict[str, torch.Tensor]
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts the processes of a job: start(url, size, *cases)."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, size: int, *cases: str) -> list[subprocess.Popen[str]]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}
        for process in range(size):
            command = [sys.executable, str(JOB), url, str(directory), str(process), str(size), *cases]
            started.append(
                fork_server.Popen(command, stderr=subprocess.PIPE, text=True, env={**kept, "OMP_NUM_THREADS": "1"})
            )
        return started[-size:]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(processes: Iterable[subprocess.Popen[str]]) -> list[int]:
    """Their exit codes, after what they said where it is not 0."""
    codes = []
    for process in processes:
        _, said = process.communicate(timeout=WAIT_SECONDS)
        codes.append(process.returncode)
        if process.returncode:
            print(said)
    return codes


def kept(directory: Path, case: str, size: int) -> Weights:
    """The whole weights, of whichever processes have them."""
    weights: Weights = {}
    for process in range(size):
        weights |= torch.load(directory / f"{case}.{process}.pt")
    return {name: weight.detach() for name, weight in weights.items() if weight.dim() > 1}


def measured_whole(url: str, truths: dict[str, Weights]) -> None:
    """Push the same weights from one process that has all of them."""
    for case, weights in truths.items():
        with Client(f"whole {case}", url, dtype="float32", max_overhead=None, strict=True, echo=False) as client:
            assert client.push(weights, STEP).num_queued == len(weights)
            assert client.flush(WAIT_SECONDS)


def rows_of(items: Iterator[Row], truths: dict[str, Weights]) -> dict[tuple[str, str], list[Row]]:
    """Measurements by run and layer, until there is one of each layer, sharded and whole."""
    wanted = {(run, name) for case, weights in truths.items() for run in (case, f"whole {case}") for name in weights}
    rows: dict[tuple[str, str], list[Row]] = {}
    while wanted - rows.keys():
        row = next(items, None)
        assert row is not None, f"not measured: {wanted - rows.keys()}"
        rows.setdefault((row["run"], row["layer"]), []).append(row)
    assert rows.keys() == wanted
    return rows


def check(rows: dict[tuple[str, str], list[Row]], case: str, weights: Weights) -> None:
    """Each time that a layer of this run was measured, it was measured as the whole is."""
    for name, weight in weights.items():
        (truth,) = rows[f"whole {case}", name]
        told = [metric for metric in METRICS if metric in truth]
        assert len(told) >= 4
        expected = {metric: truth[metric] for metric in told}
        if weight.dim() == 2:
            expected["spectral_norm"] = float(torch.linalg.matrix_norm(weight.double(), 2))
        for row in rows[case, name]:
            assert {metric: row[metric] for metric in told} == pytest.approx(expected, rel=RTOL), (case, name)
            assert (row["rows"], row["cols"]) == (truth["rows"], truth["cols"])


@pytest.mark.parametrize(
    ("size", "cases"),
    [
        (2, ("ddp", "fsdp2", "fsdp2_gathered", "tensor_parallel", "stacked", "pipeline", "fsdp1_flat", "turns")),
        (4, ("hsdp", "fsdp2_and_tensor_parallel", "tensor_parallel_and_ddp", "stacked", "fsdp1_orig", "fsdp1_hybrid")),
    ],
    ids=["two processes", "four processes"],
)
@pytest.mark.long
def test_shards_are_measured_as_the_whole_would_be(
    serve: Any, start: Start, directory: Path, size: int, cases: tuple[str, ...]
) -> None:
    url = serve().url
    with subscribe(url, streams=("measurement",), timeout=WAIT_SECONDS) as items:
        assert end(start(url, size, *cases)) == [0] * size
        truths = {case: kept(directory, case, size) for case in cases}
        measured_whole(url, truths)
        rows = rows_of(items, truths)
    for case, weights in truths.items():
        check(rows, case, weights)


@pytest.mark.long
def test_a_process_that_is_killed_holds_nobody_up(serve: Any, start: Start, directory: Path) -> None:
    config = directory / "rankd.toml"
    config.write_text("[limits]\nheartbeat_seconds = 0.5\npeer_timeout_seconds = 5.0\ntrainer_grace_seconds = 2.0\n")
    served = serve("--config", str(config))
    with subscribe(served.url, streams=("measurement",), timeout=WAIT_SECONDS) as items:
        assert end(start(served.url, 2, "killed")) == [0, -signal.SIGKILL]
        assert [next(items)["step"] for _ in range(3)] == [0, 1, 2]
    counters = ask(served.ready["query"])["counters"]
    lost = {name: counters.get(name, 0) for name in ("dropped_overtaken", "dropped_process_gone", "dropped_timed_out")}
    assert sum(lost.values()) == 2 and counters["num_assembled"] == 3, counters


def ask(address: str) -> dict[str, Any]:
    """The state that a daemon tells of itself."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(1000 * WAIT_SECONDS))
        socket.connect(address)
        socket.send_multipart(encode_query(Query("state", 1)))
        return dict(decode_reply(socket.recv_multipart()).body)
    finally:
        context.destroy(linger=0)
