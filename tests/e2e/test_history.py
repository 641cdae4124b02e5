"""What the daemon remembers, with real processes: killed at any moment, and with its files taken away."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import damage
import fork_server
import pytest
import torch

from rankd.store.reader import Reader
from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 30.0


def weights(scale: float) -> dict[str, torch.Tensor]:
    """Eight singular values, of which four shrink by `scale`: effective rank falls with it."""
    return {"w": torch.diag(torch.tensor([1.0] * 4 + [scale] * 4))}


def push_each(client: Client, scales: list[float], start: int) -> None:
    for step, scale in enumerate(scales, start):
        client.push(weights(scale), step=step)
        assert client.flush(WAIT_SECONDS)


def until(items: Iterator[dict[str, Any]], rule: str, state: str) -> list[dict[str, Any]]:
    seen = []
    for alert in items:
        seen.append(dict(alert))
        if (alert["rule"], alert["state"]) == (rule, state):
            return seen
    raise AssertionError(f"no {rule} {state} among {seen}")


def verb(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "rankd", *arguments, "--json"]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_killed_daemon_goes_on_as_if_it_had_not_been(serve: Any, directory: Path) -> None:
    """The collapse begins before the kill and is seen after it: without its memory the daemon would need a warm-up."""
    data = directory / "data"
    first = serve("--data", str(data))
    with (
        subscribe(first.url, timeout=WAIT_SECONDS) as live,
        Client("r", first.url, max_overhead=None, strict=True, echo=False) as client,
    ):
        push_each(client, [1.0] * 40, start=1000)
        push_each(client, [0.2], start=1100)
        with Reader(data) as reader:
            stream_id = reader.stream_id
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(WAIT_SECONDS)
        second = serve("--data", str(data))
        push_each(client, [0.2] * 3, start=1101)
        (fired,) = until(live, "effective_rank_drop", "firing")
        assert (fired["stream_id"], fired["seq"], live.stream_id, live.gaps) == (stream_id, 1, stream_id, [])
        second.process.send_signal(signal.SIGKILL)
        second.process.wait(WAIT_SECONDS)
        serve("--data", str(data))
        push_each(client, [1.0] * 22, start=1104)
        seen = until(live, "effective_rank_drop", "resolved")
        assert [alert["alert_id"] for alert in seen if alert["rule"] == "effective_rank_drop"] == [fired["alert_id"]]
        assert [alert["seq"] for alert in seen] == list(range(2, len(seen) + 2))
        assert client.num_errors == 0
    with Reader(data) as reader:
        assert [n for n, _ in reader.measurements("r")] == list(range(1, 67))
    recorded = verb("query", "r", "--alerts", "--data", str(data))
    assert verb("replay", "r", "--data", str(data)) == recorded == [fired, *seen]


def test_a_history_that_is_taken_away_is_said_and_begun_anew(serve: Any, directory: Path) -> None:
    data = directory / "data"
    served = serve("--data", str(data))
    with (
        subscribe(served.url, timeout=WAIT_SECONDS) as live,
        Client("r", served.url, max_overhead=None, echo=False) as client,
    ):
        push_each(client, [1.0], start=1)
        for file in data.glob("history.db*"):
            file.unlink()
        client.push(weights(1.0), step=2)
        seen = until(live, "daemon_history_moved", "firing")
        assert {alert["run"] for alert in seen} == {"@daemon"}
        assert client.flush(WAIT_SECONDS), "it is recorded again"
    with Reader(data) as reader:
        assert [row.step for _, row in reader.measurements("r")] == [2]


def test_a_damaged_history_ends_no_daemon(serve: Any, directory: Path) -> None:
    """SQLite notices neither: a byte of an alert that a subscriber asks for, and a page that opening does not touch."""
    data, place = directory / "data", directory / "place"
    served = serve("--data", str(data))
    with subscribe(served.url, timeout=1.5, since_last=str(place)) as live:
        assert list(live) == []
    with Client("r", served.url, max_overhead=None, echo=False) as client:
        push_each(client, [float("nan"), 1.0], start=1)
        assert served.stop() == 0
        damage.text(b'"state":"resolved"', b'"state" "resolved"')(data)
        served = serve("--data", str(data))
        with subscribe(served.url, timeout=WAIT_SECONDS, since_last=str(place)) as live:
            until(live, "daemon_history_moved", "firing")
        push_each(client, [1.0, float("nan")], start=3)
        with Reader(data) as reader:
            assert [row.step for _, row in reader.measurements("r")] == [3, 4]
        assert served.stop() == 0
        damage.page_of("alert")(data)
        served = serve("--data", str(data))
        push_each(client, [1.0], start=5)
    with Reader(data) as reader:
        assert [row.step for _, row in reader.measurements("r")] == [5]
        assert "daemon_history_moved" in {alert["rule"] for _, alert in reader.alerts("@daemon")}
    assert len(list(data.glob("history.db.damaged-*"))) == 2


def test_who_was_away_hears_once_what_was_raised_meanwhile(serve: Any, directory: Path) -> None:
    data, place = directory / "data", directory / "place"
    served = serve("--data", str(data))
    heard: list[int] = []

    def listen(until: int = 0) -> None:
        """To the alert of this number, and to what else comes at once."""
        while until > max(heard, default=0):
            with subscribe(served.url, timeout=WAIT_SECONDS, since_last=str(place)) as items:
                heard.append(next(items)["seq"])
                items.acknowledge()
        with subscribe(served.url, timeout=1.5, since_last=str(place)) as items:
            heard.extend(item["seq"] for item in items)

    while not place.exists():  # it has a place from when it follows
        listen()
    with Client("r", served.url, max_overhead=None, echo=False) as client:
        for step in range(1, 7):
            client.push({"w": torch.full((2, 2), float("nan") if step % 2 else 1.0)}, step=step)
            assert client.flush(WAIT_SECONDS)
            if step == 3:
                listen(until=3)
                served.process.send_signal(signal.SIGKILL)
                served.process.wait(WAIT_SECONDS)
                serve("--data", str(data))
    listen(until=6)
    listen()
    assert heard == list(range(1, 7))
