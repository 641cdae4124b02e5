"""The Ray executor on a real cluster of three nodes, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from ray_nodes import RayNodes
from works import measured, snapshot, untimed, work

from rankd.config import ConfigError, RayConfig, ServeConfig
from rankd.executors import Part, Work, make_executor
from rankd.executors.ray.deaths import COUNTER
from rankd.executors.ray.executor import RayExecutor
from rankd.executors.ray.link import Target
from rankd.executors.threads import num_threads
from rankd.plan import MeasureConfig
from rankd.records.measured import TIERS

SECONDS = 90
MAX_BYTES = 6 << 20
ANYWHERE = Target("", may_start=False, num_cores=0, gpus=(), use_gpus=True)

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    nodes = RayNodes(3, num_cores=2, client_port=free_port())
    before = dict(os.environ)
    os.environ.update(nodes.environment)
    yield nodes
    os.environ.clear()
    os.environ.update(before)
    nodes.close()


class Told(list[tuple[str, str | None]]):
    """Faults, in their order."""

    def __call__(self, name: str, text: str | None) -> None:
        self.append((name, text))


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def counted() -> list[str]:
    return []


@pytest.fixture(scope="module")
def ray(nodes: RayNodes, told: Told, counted: list[str]) -> Iterator[RayExecutor]:
    limits = RayConfig(MAX_BYTES, max_workers=3)
    executor = RayExecutor(ANYWHERE, MeasureConfig(), limits, told, retry_seconds=(0.1, 1.0), count=counted.append)
    yield executor
    executor.close()
    until(lambda: not nodes.workers())


def submit(executor: RayExecutor, items: list[Work]) -> list[Future[list[Part]]]:
    return [executor.submit(item) for item in items]


def assert_measured(futures: list[Future[list[Part]]], items: list[Work]) -> None:
    for future, item in zip(futures, items, strict=True):
        assert untimed(future.result(SECONDS)) == untimed(measured("inline", item)), item.snapshot.layer


def long_work(layer: str) -> Work:
    """Some tenths of a second, and three of them are not too many bytes."""
    return work(torch.randn(1000, 1000, generator=torch.Generator().manual_seed(3)).bfloat16(), layer)


def test_the_same_numbers_as_here(ray: RayExecutor) -> None:
    generator = torch.Generator().manual_seed(2)
    items = []
    for tier in TIERS:
        plain = [work(torch.randn(150, 160, generator=generator).bfloat16(), f"{tier}{i}", tier) for i in range(20)]
        fused = work(torch.randn(96, 32, generator=generator), "h.c_attn.weight", tier)
        experts = work(torch.randn(3, 140, 130, generator=generator), "experts", tier)
        pair = Work(snapshot(torch.randn(4, 30), "x.lora_A"), tier, snapshot(torch.randn(40, 4), "x.lora_B"))
        items += [*plain, fused, experts, pair]
    assert_measured(submit(ray, items), items)
    assert (ray.num_workers, ray.num_slots, ray.device) == (3, 12, torch.device("cpu"))


def test_a_worker_killed_in_mid_job_costs_nothing_and_is_counted(
    ray: RayExecutor, nodes: RayNodes, counted: list[str]
) -> None:
    items = [long_work(f"long{number}") for number in range(4)]
    futures = submit(ray, items)
    until(lambda: nodes.workers(at_work=True))
    before = len(counted)
    os.kill(nodes.workers(at_work=True)[0], signal.SIGKILL)
    assert_measured(futures, items)
    until(lambda: len(nodes.workers()) == 3)
    until(lambda: counted[before:] == [COUNTER])


def test_a_node_lost_in_mid_job_costs_nothing(ray: RayExecutor, nodes: RayNodes) -> None:
    """And one that comes is used."""
    items = [long_work(f"far{number}") for number in range(4)]
    futures = submit(ray, items)
    until(lambda: len(nodes.workers(at_work=True)) == 3 or all(future.done() for future in futures))
    nodes.remove_node()
    assert_measured(futures, items)
    nodes.add_node()
    until(lambda: len(nodes.workers()) == 3)


def test_a_job_that_kills_every_worker_is_measured_here(ray: RayExecutor, nodes: RayNodes) -> None:
    killed = []
    while 3 not in killed and len(killed) < 5:  # on a busy machine one may be done before it is seen at work
        items = [long_work(f"deadly{len(killed)}")]
        (future,) = submit(ray, items)
        killed.append(0)
        while not future.done():
            for pid in nodes.workers(at_work=True):
                os.kill(pid, signal.SIGKILL)
                killed[-1] += 1
                until(lambda pid=pid: pid not in nodes.workers())  # type: ignore[misc]
            time.sleep(0.02)
        assert_measured([future], items)
    assert max(killed) == 3


def test_never_more_than_so_many_bytes_are_put_at_once_and_none_stay(ray: RayExecutor, nodes: RayNodes) -> None:
    items = [work(torch.randn(700, 700), f"bounded{number}", "norms") for number in range(40)]
    futures = submit(ray, items)
    seen = []
    while not all(future.done() for future in futures):
        seen.append(nodes.stored_bytes()[0])
    # Each with its header; and Ray takes a moment to hear that one is not referenced any more. 40 are 80 MB.
    assert 0 < max(seen) <= 1.5 * MAX_BYTES
    until(lambda: nodes.stored_bytes() == (0, 0))
    assert [future.result()[0].layer for future in futures] == [item.snapshot.layer for item in items]


def test_what_is_too_large_for_it_is_measured_here(ray: RayExecutor) -> None:
    large = work(torch.randn(8, MAX_BYTES // 16), "large")
    assert_measured(submit(ray, [large]), [large])


def test_a_driver_that_is_lost_leaves_its_work_to_this_host_and_is_started_again(
    ray: RayExecutor, nodes: RayNodes, told: Told
) -> None:
    told.clear()
    items = [long_work(f"orphan{number}") for number in range(3)]
    futures = submit(ray, items)
    until(lambda: nodes.workers(at_work=True) or all(future.done() for future in futures))
    (driver,) = nodes.drivers()
    os.kill(driver, signal.SIGKILL)
    until(lambda: told)
    assert ray.num_workers == num_threads(), "which measure meanwhile; another driver takes seconds to start"
    assert_measured(futures, items)
    until(lambda: ("ray", None) in told)
    assert ray.num_workers == 3
    assert [name for name, _ in told] == ["ray", "ray"] and "the Ray cluster is lost: the Ray driver" in str(told[0][1])
    assert_measured(submit(ray, items), items)


def test_through_the_clients_server_it_is_the_same(nodes: RayNodes, told: Told) -> None:
    address = f"ray://127.0.0.1:{nodes.client_port}"
    target = Target(address, may_start=False, num_cores=0, gpus=(), use_gpus=True)
    try:
        executor = RayExecutor(target, MeasureConfig(), RayConfig(MAX_BYTES, max_workers=1), told)
    except ConfigError:  # Ray's server takes a port that it has only looked at, and has 30 s to begin: once more
        executor = RayExecutor(target, MeasureConfig(), RayConfig(MAX_BYTES, max_workers=1), told)
    try:
        items = [work(torch.randn(150, 160 + n).bfloat16(), f"far{n}", "estimate") for n in range(6)]
        assert_measured(submit(executor, items), items)
        assert executor.num_workers == 1
    finally:
        executor.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
def test_every_gpu_has_a_worker() -> None:
    """And one that is killed has another in its place, with its GPU."""
    with pytest.MonkeyPatch.context() as patch:
        two = RayNodes(1, num_cores=2, num_gpus=2, store_mib=512)
        for name, value in two.environment.items():
            patch.setenv(name, value)
        told = Told()
        executor = RayExecutor(ANYWHERE, MeasureConfig(), RayConfig(), told)
        try:
            assert (executor.num_workers, executor.device) == (2, torch.device("cuda", 0))
            for number in range(2):
                items = [work(torch.randn(900, 1000 + n), f"gpu{n}") for n in range(60)]
                futures = submit(executor, items)
                until(lambda: two.workers(at_work=True))
                if number == 0:
                    os.kill(two.workers(at_work=True)[0], signal.SIGKILL)
                for future, item in zip(futures, items, strict=True):
                    found, here = future.result(SECONDS)[0].reading, measured("inline", item)[0].reading
                    assert found.metrics["effective_rank"] == pytest.approx(here.metrics["effective_rank"], rel=1e-4)
                until(lambda: len(two.workers()) == 2)
            assert told == []
        finally:
            executor.close()
            two.close()


def config(executor: str) -> ServeConfig:
    return ServeConfig("ipc:///p", "ipc:///a", "ipc:///q", device="cpu", executor=executor)


@pytest.mark.parametrize(
    ("executor", "address", "words"),
    [
        ("ray://127.0.0.1:9", "", "ray://127.0.0.1:9 does not answer: nobody takes a connection there within 5 s"),
        ("ray", "127.0.0.1:9", "127.0.0.1:9 does not answer: nobody takes a connection there within 5 s"),
    ],
)
def test_who_does_not_answer_is_named(
    executor: str, address: str, words: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    source = f"executor='{executor}'" + (f", RAY_ADDRESS='{address}'" if address else "")
    with pytest.raises(ConfigError, match=f"^{source}: {words}"):
        make_executor(config(executor), told)


def test_rays_own_word_for_the_cluster_of_this_host(
    told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where none is found
    with pytest.raises(ConfigError, match=r"^executor='ray', RAY_ADDRESS='auto': no Ray cluster runs on this host"):
        make_executor(config("ray"), told)


def test_a_port_that_is_not_the_client_servers_is_told(
    nodes: RayNodes, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INITIAL", "MAX"):  # of three tries; else it takes half a minute
        monkeypatch.setenv(f"RAY_CLIENT_{name}_CONNECTION_TIMEOUT_S", "1")
    url = f"ray://{nodes.address}"
    with pytest.raises(ConfigError, match=f"^executor='{url}': {url} cannot be joined .*10001"):
        make_executor(config(url), told)


def test_a_broken_ray_is_named(told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise RuntimeError('half of it is missing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"^executor='ray': ray cannot be imported: half of it is missing"):
        make_executor(config("ray"), told)


@pytest.mark.parametrize("module", ["ray", "grpc"])
def test_what_is_not_installed_is_named(module: str, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"executor='ray': expected the package .*: pip install 'rankd\[ray\]'"):
        make_executor(config("ray"), told)
