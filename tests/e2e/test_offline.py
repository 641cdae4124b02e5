"""Training without a route to the daemon: spooled by real trainers, shipped by a real sync to a real daemon."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
from offline import TRAINER, WAIT_SECONDS, alerts, environment, measured, readings, sync, sync_command, train
from spooled import Spooled, bytes_in, chunk_of, records_of

from rankd_client import Client, subscribe
from rankd_client.console import show_bytes
from rankd_client.spool.format import PREAMBLE_BYTES
from rankd_client.wire import Shard

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def test_killed_in_the_middle_again_and_again_the_history_is_that_of_the_same_training_online(
    serve: Any, directory: Path
) -> None:
    spool, data = directory / "spool", directory / "data"
    daemon = serve("--data", str(data), "--tier", "exact")
    train(daemon.url, None, "online")
    told = train(None, spool, "offline")
    num_bytes = bytes_in(spool) - PREAMBLE_BYTES * len(list(spool.glob("*/*.spool")))
    assert told[-1] == f"rankd: 180 snapshots of offline ({show_bytes(num_bytes)}) spooled; " + (
        f"ship them with: rankd sync {spool}"
    )
    (done,) = (path / "done" for path in spool.glob("*/"))
    for kill in range(3):
        before = done.stat().st_size if done.exists() else 0
        process = fork_server.Popen(
            sync_command(spool, daemon.url), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + WAIT_SECONDS
        while not (done.exists() and done.stat().st_size >= before + 12 * 30):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.001)
        if kill == 1:  # the daemon first, and the sync that had snapshots under way goes on with the next one
            daemon.process.kill()
            daemon.process.wait()
            daemon = serve("--data", str(data), "--tier", "exact", url=daemon.url)
        process.kill()
        process.wait()
    (row,) = sync(spool, daemon.url)
    assert row["num_before"] >= 90 and row["num_before"] + row["num_shipped"] == 180 and row["num_left"] == 0
    online, offline = readings(data, "online"), readings(data, "offline")
    assert online.keys() == offline.keys() and len(online) == 180
    for key, values in online.items():
        assert offline[key] == pytest.approx(values, rel=1e-6)
    assert alerts(data, "offline") == alerts(data, "online") != []
    (again,) = sync(spool, daemon.url, "--delete")
    assert (again["num_shipped"], again["num_before"], again["bytes"]) == (0, 180, 0)
    assert list(spool.glob("*/")) == []


def test_a_trainer_that_lives_is_synced_up_to_where_it_is_and_again_when_it_was_killed(
    serve: Any, directory: Path
) -> None:
    spool, data = directory / "spool", directory / "data"
    url = serve("--data", str(data), "--tier", "exact").url
    trainer = fork_server.Popen(
        [sys.executable, "-c", TRAINER, "lm", "40", "1"],
        env={**environment(), "RANKD_MODE": "offline", "RANKD_SPOOL": str(spool)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert trainer.stdin is not None and trainer.stdout is not None
    until = time.monotonic() + WAIT_SECONDS
    while bytes_in(spool) < 5000:
        assert time.monotonic() < until and trainer.poll() is None
        time.sleep(0.005)
    (first,) = sync(spool, url, "--delete")
    assert first["live"] and first["num_shipped"] > 0
    assert trainer.stdout.readline() == "trained\n"
    trainer.kill()
    trainer.wait()
    trainer.stdin.close()
    trainer.stdout.close()
    with next(spool.glob("*/*.spool")).open("ab") as file:
        file.write(b"snap, torn")
    (second,) = sync(spool, url)
    assert not second["live"] and second["num_before"] == first["num_shipped"]
    assert set(readings(data)) == {(f"h.{layer}", step) for layer in range(3) for step in range(1000, 1040)}


def test_two_processes_of_a_job_share_a_spool_and_their_parts_become_one_matrix(serve: Any, directory: Path) -> None:
    """Cut by rows and by columns and by flat ranges; of the last step one process wrote nothing any more."""
    spool, data = directory / "spool", directory / "data"
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(3))
    flat = weight.reshape(-1)
    parts: dict[str, list[tuple[Shard, torch.Tensor]]] = {
        "rows": [(Shard(((0, 4, 0, 10),)), weight[:4]), (Shard(((4, 6, 0, 10),)), weight[4:])],
        "columns": [(Shard(((0, 6, 3, 10),)), weight[:, 3:]), (Shard(((0, 6, 0, 3),)), weight[:, :3])],
        "flat": [(Shard(ranges=((5, 23), (40, 60))), torch.cat([flat[5:23], flat[40:]])),
                 (Shard(ranges=((0, 5), (23, 40))), torch.cat([flat[:5], flat[23:40]]))],
    }  # fmt: skip
    writers = [Spooled(spool, "lm", bytes([rank] * 16), process_rank=rank, world_size=2) for rank in range(2)]
    for step in range(5):
        for layer, shards in parts.items():
            for rank, (shard, values) in enumerate(shards):
                if (step, rank) != (4, 1):
                    body = (values * (step + 1)).contiguous().numpy().tobytes()
                    writers[rank].keep(chunk_of(layer, step, (6, 10), shard), body)
    url = serve("--data", str(data), "--tier", "exact").url
    rows = sync(spool, url)  # both live: what is missing may come yet
    assert [(row["num_shipped"], row["num_left"], row["num_incomplete"]) for row in rows] == [(12, 3, 0), (12, 0, 0)]
    for writer in writers:
        writer.close()
    rows = sync(spool, url, code=1)
    assert [(row["num_before"], row["num_left"], row["num_incomplete"]) for row in rows] == [(12, 0, 3), (12, 0, 0)]
    found = readings(data)
    assert set(found) == {(layer, step) for layer in parts for step in range(4)}
    sigma = float(torch.linalg.svdvals(weight.double())[0])
    for (_, step), values in found.items():
        assert values[0] == pytest.approx(sigma * (step + 1), rel=1e-5)


def test_features_scaled_copies_and_numbers_of_the_trainer_travel_with_their_roles(
    serve: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, data = directory / "spool", directory / "data"
    monkeypatch.setenv("RANKD_MODE", "offline")
    monkeypatch.setenv("RANKD_SPOOL", str(spool))
    weight = torch.diag(torch.arange(1.0, 33.0))
    with Client("lm", max_overhead=None, dtype="int8", strict=True, echo=False) as client:
        for step in range(3):
            client.push({"w": weight}, step=step, also={"features": weight[:20]})
            client.push_measurements({"w": {"stable_rank": 1.5}, "probe": {"effective_rank": 5.0 - step}}, step=step)
            assert client.flush(WAIT_SECONDS)
    (row,) = sync(spool, serve("--data", str(data), "--tier", "exact").url)
    assert (row["num_shipped"], row["num_left"], row["num_refused"]) == (12, 0, 0)
    rows = [(row["layer"], row["role"], row["step"], row["effective_rank"]) for row in measured(data)]
    assert {row[:2] for row in rows} == {("w", "weight"), ("features", "feature"), ("probe", "weight")}
    assert [row[2:] for row in rows if row[0] == "probe"] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert Counter(row[0] for row in rows)["w"] == 3  # of a step that was measured, the trainer's number is a repeat


def test_a_job_that_is_started_again_goes_after_the_first(serve: Any, directory: Path) -> None:
    spool, data = directory / "spool", directory / "data"
    for life, steps in enumerate((range(10), range(5, 15))):
        writer = Spooled(spool, "lm", bytes([9 - life] * 16))
        for step in steps:
            writer.keep(chunk_of("w", step), torch.diag(torch.arange(1.0, 5.0)).numpy().tobytes())
        writer.close()
    sync(spool, serve("--data", str(data), "--tier", "exact").url)
    assert [row["step"] for row in measured(data)] == [*range(10), *range(5, 15)]


def test_the_next_sync_ends_the_alert_that_one_was_killed(serve: Any, directory: Path) -> None:
    spool, config = directory / "spool", directory / "rankd.toml"
    config.write_text("[limits]\ntrainer_grace_seconds = 0.2\n")
    writer = Spooled(spool, "lm")
    for step in range(300):
        writer.keep(chunk_of("w", step), torch.diag(torch.arange(1.0, 5.0)).numpy().tobytes())
    writer.close()
    url, done = serve("--tier", "exact", "--config", str(config)).url, writer.path / "done"
    with subscribe(url, run="lm", timeout=WAIT_SECONDS) as subscription:
        alerts = (alert for alert in subscription if alert["rule"] == "trainer_gone")
        with fork_server.Popen(sync_command(spool, url), env=environment(), stdout=subprocess.DEVNULL) as killed:
            until = time.monotonic() + WAIT_SECONDS
            while not (done.exists() and done.stat().st_size):
                assert time.monotonic() < until and killed.poll() is None
                time.sleep(0.001)
            killed.kill()
        fired = next(alerts)
        (row,) = sync(spool, url)
        ended = next(alerts)
    assert fired["state"] == "firing" and row["num_before"] and row["num_shipped"]
    assert (ended["state"], ended["alert_id"]) == ("resolved", fired["alert_id"])


def test_what_it_says_without_a_daemon_beside_another_and_of_what_is_damaged(serve: Any, directory: Path) -> None:
    spool, data = directory / "spool", directory / "data"
    for rank, layer in enumerate("ab"):
        writer = Spooled(spool, "lm", bytes([rank] * 16), process_rank=rank, world_size=2)
        for step in range(4):
            writer.keep(chunk_of(layer, step), torch.eye(4).numpy().tobytes())
        writer.close()
    url = f"ipc://{directory}/d"

    def refused(*options: str) -> subprocess.CompletedProcess[str]:
        return fork_server.run(
            sync_command(spool, url, *options), env=environment(), capture_output=True, text=True, timeout=WAIT_SECONDS
        )

    alone = refused("--wait", "0.5")
    assert alone.returncode == 1 and "no daemon takes this in at ipc://" in alone.stderr, alone.stderr
    lock = os.open(spool / "sync.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    second = refused()
    os.close(lock)
    assert second.returncode == 1 and f"another sync is at work here; its lock is '{spool}/sync.lock'" in second.stderr
    file = spool / bytes([1] * 16).hex() / "01.spool"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (spool / ("f" * 32)).mkdir()
    (spool / ("f" * 32) / "head").write_bytes(b"hostile")
    serve("--data", str(data), "--tier", "exact", url=url)
    damaged = refused()
    assert damaged.returncode == 1
    assert f"'{file}', offset" in damaged.stderr and "checksum is wrong" in damaged.stderr
    assert f"{'f' * 32}/head', offset 7: it ends too early" in damaged.stderr
    rows = [json.loads(line) for line in damaged.stdout.splitlines()]
    assert [(row["num_shipped"], row["num_damaged"]) for row in rows] == [(4, 0), (3, 1)]
    assert refused("--url", "http://x").returncode == 2
    assert fork_server.run(sync_command(directory / "none", url), capture_output=True).returncode == 2


def test_processes_that_write_at_once_keep_the_budget_together(directory: Path) -> None:
    """Layers take turns there, and none of them is thinned out of existence."""
    spool, budget = directory / "spool", 700_000
    program = """
import sys, torch
from rankd_client import Client
with Client(f"run{sys.argv[1]}", max_overhead=None, max_push_bytes=2 * 2048, strict=True) as client:
    for step in range(200):
        client.push({f"h.{i}": torch.eye(32) + step for i in range(8)}, step=step)
        assert client.flush(60.0)
"""
    variables = {"RANKD_MODE": "offline", "RANKD_SPOOL": str(spool), "RANKD_SPOOL_BYTES": str(budget)}
    trainers = [
        fork_server.Popen(
            [sys.executable, "-c", program, str(number)],
            env={**environment(), **variables},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    most = 0
    while any(trainer.poll() is None for trainer in trainers):
        most = max(most, bytes_in(spool) if spool.exists() else 0)
        time.sleep(0.002)
    told = [trainer.communicate()[1] for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0] * 2, told
    assert budget / 2 < most <= budget + 2 * 2400, most
    assert all("thinned out" in words and "dropped" not in words for words in told), told
    for session in spool.glob("*/"):
        counts = Counter(chunk.layer for _, chunk, _ in records_of(session))
        assert len(counts) == 8 and max(counts.values()) <= min(counts.values()) + 8, counts
