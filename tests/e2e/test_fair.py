"""Trainers of two namespaces on one daemon that cannot measure all they push: one namespace has eight runs, the other
one. What each gets of the time, and how long the one run waits."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rankd.cli import app
from rankd_client import Client

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 120.0
NUM_RUNS = 8


def push_greedily(url: str, key: str, num_runs: int, shape: tuple[int, int], num_layers: int, begin: Any) -> None:
    """`num_runs` clients that push all layers again and again, from `begin` on."""
    torch.set_num_threads(1)
    clients = [Client(f"r{i}", url, key=key, max_overhead=None, echo=False) for i in range(num_runs)]
    weights = {f"h.{i}": torch.randn(shape) for i in range(num_layers)}
    begin.wait()
    for step in range(1 << 30):
        for client in clients:
            client.push(weights, step=step)
        time.sleep(0.1)


class Crowd:
    """The daemon, and the processes of its two namespaces."""

    def __init__(self, served: Any, directory: Path) -> None:
        self.url, self.http, self.directory = served.ready["push"], served.ready["http"], directory
        self.key = {name: str(directory / f"{name}.key") for name in ("many", "one", "root")}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch", "rankd_client.client"])
        self.begin = self.context.Event()
        self.children: list[Any] = []

    def start(self, name: str, num_runs: int, shape: tuple[int, int], num_layers: int) -> None:
        arguments = (self.url, self.key[name], num_runs, shape, num_layers, self.begin)
        self.children.append(self.context.Process(target=push_greedily, args=arguments, daemon=True))
        self.children[-1].start()

    def capacity(self) -> dict[str, Any]:
        """As the operator is told it, by namespace."""
        with urllib.request.urlopen(f"{self.http}/capacity", timeout=30) as reply:
            return {row["namespace"]: row for row in json.load(reply)["namespaces"]}

    def wait_for(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so(told := self.capacity()):
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
        return told

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.join()


@pytest.fixture
def crowd(serve: Any, directory: Path) -> Iterator[Crowd]:
    for name, *options in (
        ("many", "--namespace", "many"),
        ("one", "--namespace", "one"),
        ("root", "--rights", "admin"),
    ):
        made = CliRunner().invoke(
            app,
            ["keys", "new", name, *options, "--keys", str(directory / "ring"), "-o", str(directory / f"{name}.key")],
        )
        assert made.exit_code == 0, made.output
    options = ["--keys", str(directory / "ring"), "--http", "127.0.0.1:0", "--device", "cpu", "--tier", "exact"]
    crowd = Crowd(serve(*options, url="tcp://127.0.0.1:0"), directory)
    yield crowd
    crowd.end()


def test_each_namespace_has_half_of_the_time_whatever_its_runs_and_its_matrices(crowd: Crowd) -> None:
    """Measurements of the one take some thirty times as long as those of the others."""
    crowd.start("many", NUM_RUNS, (128, 256), 4)
    crowd.start("one", 1, (640, 640), 4)
    crowd.begin.set()
    told = crowd.wait_for(lambda told: len(told) == 2 and min(row["num_measured"] for row in told.values()) >= 40)
    shares = {name: row["share"] for name, row in told.items()}
    assert 0.35 < shares["one"] / sum(shares.values()) < 0.65, told
    runs = [row["num_measured"] for row in told["many"]["runs"]]
    assert len(runs) == NUM_RUNS and max(runs) < 3 * min(runs), "in a namespace the runs have equal shares"
    assert told["many"]["num_superseded"] and told["one"]["num_superseded"], "neither got all that it pushed"


def test_a_small_run_gets_all_that_it_asks_for_at_once(crowd: Crowd) -> None:
    """While one of its snapshots waits, of some thirty that wait of the other namespace only few are measured."""
    crowd.start("many", NUM_RUNS, (256, 512), 4)
    crowd.begin.set()
    crowd.wait_for(lambda told: "many" in told and told["many"]["num_superseded"] >= 100)
    client = Client("small", crowd.url, key=crowd.key["one"], max_overhead=None, echo=False)
    passed_by = []
    with client:
        for step in range(12):
            before = crowd.capacity()["many"]["num_measured"]
            client.push({"w": torch.randn(128, 128)}, step=step)
            assert client.flush(WAIT_SECONDS)
            passed_by.append(crowd.capacity()["many"]["num_measured"] - before)
        told = crowd.capacity()
    assert (told["one"]["num_measured"], told["one"]["num_superseded"], told["one"]["num_dropped"]) == (12, 0, 0)
    assert told["many"]["num_waiting"] >= NUM_RUNS, "the others wait"
    assert statistics.median(passed_by[2:]) < NUM_RUNS, passed_by
    for name, seen in (("one", {"one"}), ("root", {"one", "many"})):
        said = CliRunner().invoke(
            app, ["doctor", "--config", "off", "--url", f"{crowd.url}", "--key", crowd.key[name], "--http", "off"]
        )
        assert f"@{name}/" in said.stdout or name == "root", said.stdout
        assert {ns for ns in ("one", "many") if f"@{ns}/" in said.stdout} == seen, said.stdout
