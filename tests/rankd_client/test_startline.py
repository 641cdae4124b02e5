"""The line at the start promises what somebody sees to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from place_rows import Rows

from rankd_client import Client
from rankd_client.config import Config
from rankd_client.startline import StartLine

CONFIG = Config(
    run="r",
    address="ipc:///none",
    mode="online",
    every_steps=1,
    min_interval_seconds=0.0,
    max_overhead=0.005,
    max_push_bytes=1 << 20,
    max_memory_bytes=1 << 20,
    dtype="bfloat16",
    include=None,
    exclude=(),
    priority=(),
    strict=False,
    echo=False,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)


def line(capfd: pytest.CaptureFixture[str], blocked_seconds: float = 0.1, config: Config = CONFIG) -> str:
    start_line = StartLine(config)
    start_line.pushed(1, 0.0, blocked_seconds, 4096)
    start_line.called(2, 1.0)
    return capfd.readouterr().err


def test_a_process_that_is_alone_keeps_to_its_limit(capfd: pytest.CaptureFixture[str]) -> None:
    assert "estimated cost 10 % if each due push were whole, kept to 0.5 %" in line(capfd)
    assert line(capfd, 0.001).endswith("estimated cost 0.1 %\n")


@pytest.mark.parametrize(
    ("every_steps", "says"),
    [(1, "10 %"), (524_288, "10 %"), (2 * 524_288, "5 %")],
    ids=["less than a call", "a call", "two calls"],
)
def test_where_steps_are_tokens_pushes_are_no_closer_than_calls(
    capfd: pytest.CaptureFixture[str], every_steps: int, says: str
) -> None:
    start_line = StartLine(replace(CONFIG, every_steps=every_steps, max_overhead=None))
    start_line.pushed(524_288, 0.0, 0.1, 4096)
    start_line.called(2 * 524_288, 1.0)
    assert capfd.readouterr().err.endswith(f"estimated cost {says}\n")


def test_a_call_at_the_same_step_tells_nothing_of_the_time_between_steps(capfd: pytest.CaptureFixture[str]) -> None:
    start_line = StartLine(CONFIG)
    start_line.pushed(1, 0.0, 0.1, 4096)
    start_line.called(1, 0.001)
    assert capfd.readouterr().err == ""
    start_line.called(2, 1.0)
    assert "estimated cost 10 %" in capfd.readouterr().err


def test_one_of_several_leaves_it_to_the_daemon(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    said = line(capfd)
    assert "estimated cost 10 % if each due push were whole, spaced by the daemon's plan for 0.5 %" in said
    assert "kept to" not in said
    assert line(capfd, 0.001).endswith("estimated cost 0.1 %\n")


def test_nobody_spaces_the_pushes_of_several_processes_without_a_daemon(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = line(capfd, config=replace(CONFIG, mode="offline", spool="/spool"))
    assert "more than 0.5 %, as no daemon" in said and "every_steps" in said and "kept to" not in said


@pytest.mark.parametrize(("process_rank", "is_sharded", "says"), [(0, False, 1), (1, False, 0), (1, True, 1)])
def test_a_process_that_has_nothing_to_send_leaves_the_line_to_those_that_do(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    process_rank: int,
    is_sharded: bool,
    says: int,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(process_rank))
    adapters = [Rows(process_rank, 2)] if is_sharded else []
    with Client("r", f"ipc://{tmp_path}", adapters=adapters, strict=True, echo=False) as client:
        for step in range(3):
            client.push({"w": torch.ones(4, 4)}, step)
    assert capfd.readouterr().err.count("1 of 1 tensors watched") == says
