"""The whole path with real processes and sockets: a trainer pushes, the daemon measures, a warning arrives."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import fork_server
import pytest
import torch
import zmq

from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 30.0


def matrix(*singular_values: float, size: int = 8) -> torch.Tensor:
    """A diagonal matrix: its singular values are exact in bfloat16 where the values are."""
    return torch.diag(torch.tensor([*singular_values, *[0.0] * (size - len(singular_values))], dtype=torch.float32))


def push_each(client: Client, weights: Iterable[torch.Tensor], layer: str = "w", start: int = 0) -> None:
    """One push a step, each measured before the next: no snapshot replaces another."""
    for step, weight in enumerate(weights, start):
        assert client.push({layer: weight}, step=step).num_queued == 1
        assert client.flush(WAIT_SECONDS)


def alerts_of(items: Iterator[dict[str, Any]], *states: tuple[str, str]) -> list[dict[str, Any]]:
    """Items of the iterator until all (rule, state) were seen."""
    seen: list[dict[str, Any]] = []
    while not set(states) <= {(alert["rule"], alert["state"]) for alert in seen}:
        seen.append(next(items))
    return seen


def test_measurements_equal_those_of_the_pushed_copy(serve: Any) -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    url = serve().url
    with (
        subscribe(url, streams=("measurement",), timeout=WAIT_SECONDS) as items,
        Client("m", url, max_overhead=None) as client,
    ):
        client.push({"w": weight, "conv": weight.reshape(48, 4, 2, 4)}, step=3)
        rows = {row["layer"]: row for row in (next(items), next(items))}
    sigma = torch.linalg.svdvals(weight.bfloat16().double())
    share = sigma / sigma.sum()
    expected = {
        "spectral_norm": float(sigma[0]),
        "frobenius_norm": float(sigma.square().sum().sqrt()),
        "stable_rank": float(sigma.square().sum() / sigma[0] ** 2),
        "effective_rank": math.exp(float(-(share * share.log()).sum())),
        "participation_ratio": float(sigma.square().sum() ** 2 / sigma.pow(4).sum()),
    }
    for row in rows.values():
        assert (row["run"], row["step"], row["rows"], row["cols"], row["finite"]) == ("m", 3, 48, 32, True)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert rows["conv"]["shape"] == [48, 4, 2, 4]


def test_a_collapse_is_raised_once_and_ends_as_rebased(serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    url = serve().url
    healthy, collapsed = matrix(1, 1, 1, 1, 1, 1, 1, 1), matrix(1, 1, 1, 1)
    with (
        subscribe(url, timeout=WAIT_SECONDS) as live,
        Client("c", url, max_overhead=None, every_steps=1) as client,
    ):
        push_each(client, [healthy] * 40, start=1000)
        push_each(client, [collapsed] * 23, start=1100)
        seen = alerts_of(live, ("effective_rank_drop", "rebased"))
        own = client.alerts()
    fired, rebased = seen
    # the median of three shows the fall at its second reading, and three in a row make it an alert
    assert (fired["rule"], fired["state"], fired["severity"]) == ("effective_rank_drop", "firing", "warning")
    assert (fired["run"], fired["layer"], fired["step"]) == ("c", "w", 1103)
    assert (fired["value"], fired["baseline"]) == (pytest.approx(4.0, rel=1e-6), pytest.approx(8.0, rel=1e-6))
    assert (rebased["alert_id"], rebased["severity"]) == (fired["alert_id"], "info")
    assert [(alert["seq"], alert["state"]) for alert in own] == [(fired["seq"], "firing"), (rebased["seq"], "rebased")]
    assert "effective_rank fell 50 %" in capfd.readouterr().err
    with subscribe(url, timeout=1.0) as late:
        assert list(late) == []  # nothing fires now


def test_nan_zero_going_back_and_a_new_shape_are_said_at_once(serve: Any) -> None:
    url = serve().url
    bad, good = matrix(1, math.nan), matrix(1, 1, 1)
    with subscribe(url, timeout=WAIT_SECONDS) as live, Client("n", url, max_overhead=None) as client:
        push_each(client, [good, bad, bad, good, matrix(0.0), good])
        push_each(client, [good], start=2)
        push_each(client, [matrix(1, 1, size=5)], start=3)
        seen = alerts_of(live, ("zero", "resolved"))
        seen += [next(live), next(live)]
        with subscribe(url, timeout=1.0) as late:
            assert list(late) == []
    assert [(a["rule"], a["state"], a["severity"], a["step"]) for a in seen] == [
        ("nonfinite", "firing", "critical", 1),
        ("nonfinite", "resolved", "critical", 3),
        ("zero", "firing", "critical", 4),
        ("zero", "resolved", "critical", 5),
        ("baseline_reset", "rebased", "info", 2),
        ("baseline_reset", "rebased", "info", 3),
    ]


def test_a_late_joiner_hears_what_fires(serve: Any) -> None:
    url = serve().url
    with Client("late", url, max_overhead=None) as client:
        push_each(client, [matrix(1, math.inf)])
        with subscribe(url, run="late", timeout=WAIT_SECONDS) as late:
            assert next(late)["rule"] == "nonfinite"
        with subscribe(url, run="lat", timeout=1.0) as other:
            assert list(other) == []  # a run's name is no other run's prefix


def health_of(served: Any) -> dict[str, Any]:
    with urllib.request.urlopen(f"{served.ready['http']}/healthz", timeout=WAIT_SECONDS) as answer:
        health: dict[str, Any] = json.load(answer)
        return health


TRAINER = """
import sys, torch
from rankd_client import Client
run, url = sys.argv[1:]
with Client(run, url, max_overhead=None, strict=True) as client:
    for step in range(20):
        client.push({f"layer{i}": torch.randn(16, 16) for i in range(5)}, step=step)
        assert client.flush(30.0)
print(client.num_errors)
"""


def test_several_trainers_at_once(serve: Any) -> None:
    served = serve("--http", "127.0.0.1:0")
    runs = [f"run{i}" for i in range(3)]
    with subscribe(served.url, streams=("measurement",), timeout=WAIT_SECONDS) as items:
        trainers = [
            fork_server.Popen([sys.executable, "-c", TRAINER, run, served.url], stdout=subprocess.PIPE, text=True)
            for run in runs
        ]
        rows = [next(items) for _ in range(3 * 20 * 5)]
        assert [trainer.communicate(timeout=60)[0] for trainer in trainers] == ["0\n"] * 3
    steps = {(run, f"layer{i}"): [] for run in runs for i in range(5)}
    for row in rows:
        steps[row["run"], row["layer"]].append(row["step"])
    assert all(found == list(range(20)) for found in steps.values())
    health = health_of(served)
    assert (health["status"], health["num_measurements"]) == ("ok", 300)


def test_a_killed_daemon_costs_the_trainer_nothing_and_the_next_one_gets_what_was_open(serve: Any) -> None:
    first = serve()
    client = Client("k", first.url, max_overhead=None, strict=True)
    push_each(client, [matrix(1, 1)])
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    for step in range(1, 50):
        assert client.push({"w": matrix(1, step)}, step=step).num_queued == 1
    second = serve(url=first.url)
    with subscribe(second.url, streams=("measurement",), timeout=WAIT_SECONDS) as items:
        row = next(items)
    assert client.flush(WAIT_SECONDS)
    assert (row["step"], row["spectral_norm"]) == (49, 49.0)
    client.close()


def test_a_second_daemon_on_the_same_address_fails_at_once(serve: Any) -> None:
    first = serve()
    command = [sys.executable, "-m", "rankd", "serve", "--url", first.url, "--http", "off"]
    second = fork_server.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "in use by another rankd" in second.stderr
    with Client("still", first.url, max_overhead=None) as client:
        push_each(client, [matrix(1, 1)])


def test_garbage_ends_nothing(serve: Any) -> None:
    served = serve()
    garbage = ([b""], [b"\xc1"], [b"\xff" * 1000], [b"{}"] * 3)
    with zmq.Context() as context:
        for name in ("push", "query", "push"):
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(served.ready[name])
                for frames in garbage:
                    socket.send_multipart(frames)
                    assert socket.poll(10_000), "each is answered with its code"
                    socket.recv_multipart()
                socket.send_multipart([b"\x80", b"x" * (20 << 20)])  # cut off by its size
        with Client("after", served.url, max_overhead=None) as client:
            push_each(client, [matrix(1, 1)])


def test_a_stuck_subscriber_slows_nobody(serve: Any) -> None:
    served = serve()
    context = zmq.Context()
    stuck = context.socket(zmq.SUB)
    stuck.setsockopt(zmq.RCVHWM, 1)
    stuck.setsockopt(zmq.LINGER, 0)
    stuck.setsockopt(zmq.SUBSCRIBE, b"")
    stuck.connect(served.ready["alerts"])
    weights = {f"layer{i}": matrix(1, i + 1) for i in range(50)}
    with (
        subscribe(served.url, streams=("measurement",), timeout=WAIT_SECONDS) as items,
        Client("s", served.url, max_overhead=None) as client,
    ):
        for step in range(40):
            client.push(weights, step=step)
            assert client.flush(WAIT_SECONDS)
        rows = [next(items) for _ in range(40 * 50)]
        assert items.gaps == []
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    stuck.close()
    context.term()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopping_measures_what_waits_and_tells_subscribers(serve: Any, signum: int) -> None:
    served = serve("--http", "127.0.0.1:0")
    with subscribe(served.url, streams=("measurement",), timeout=WAIT_SECONDS) as items:
        with Client("stop", served.url, max_overhead=None, max_push_bytes=256 << 20) as client:
            client.push({f"w{i}": torch.randn(400, 400) for i in range(20)}, step=1)
            next(items)  # the subscription has arrived
            until = time.monotonic() + WAIT_SECONDS
            while health_of(served).get("num_received_bytes") != 20 * 400 * 400 * 2:
                assert time.monotonic() < until
                time.sleep(0.02)
            assert served.stop(signum) == 0
        assert "stopping" in served.log.read_text()
        rest = [next(items) for _ in range(19)]
        assert len({row["layer"] for row in rest}) == 19


def test_run_gives_one_command_a_daemon(directory: Any) -> None:
    code = (
        "import torch, rankd_client, os\n"
        "client = rankd_client.Client('r', max_overhead=None)\n"
        "client.push({'w': torch.full((4, 4), float('nan'))}, step=7)\n"
        "print(client.flush(30.0), os.environ['RANKD_URL'].startswith('ipc://'))\n"
        "raise SystemExit(5)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rankd", "run", "--", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (5, "True True\n")
    assert done.stderr.count("CRITICAL r step 7") == 1, done.stderr


def test_run_names_a_command_that_is_not_there() -> None:
    done = fork_server.run(
        [sys.executable, "-m", "rankd", "run", "--", "no-such-command"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 127
    assert "no-such-command" in done.stderr
