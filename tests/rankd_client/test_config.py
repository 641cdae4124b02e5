"""Settings: argument before environment before default; what is wrong is named with key, value and expectation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankd_client.client import Client


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANKD_RUN", "RANKD_MODE", "RANKD_EVERY_STEPS", "RANKD_ECHO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANKD_URL", "ipc:///nowhere/rankd")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("run", "", "a name of 1 to 256"),
        ("run", "a\0b", "without NUL"),
        ("run", "\ud800", "UTF-8"),
        ("run", "x" * 257, "a name of 1 to 256"),
        ("run", 7, "a name"),
        ("endpoint", "http://localhost:1", "expected ipc://DIR or tcp://HOST:PORT"),
        ("endpoint", "tcp://localhost:0", "the port of a daemon"),
        ("endpoint", 7, "ipc://DIR or tcp://HOST:PORT"),
        ("every_steps", 0, "an integer of at least 1"),
        ("every_steps", True, "an integer of at least 1"),
        ("every_steps", 1.5, "an integer of at least 1"),
        ("min_interval_seconds", -1.0, "a finite number of at least 0"),
        ("min_interval_seconds", float("nan"), "a finite number of at least 0"),
        ("min_interval_seconds", "1", "a finite number of at least 0"),
        ("max_overhead", 0, "a share of training time above 0 and up to 1, or None"),
        ("max_overhead", 1.5, "a share of training time above 0 and up to 1, or None"),
        ("max_overhead", -1, "a share of training time above 0 and up to 1, or None"),
        ("max_overhead", float("nan"), "a share of training time above 0 and up to 1, or None"),
        ("max_overhead", "x", "a share of training time above 0 and up to 1, or None"),
        ("max_overhead", True, "a share of training time above 0 and up to 1, or None"),
        ("max_push_bytes", 0, "an integer of at least 1"),
        ("max_memory_bytes", -1, "an integer of at least 1"),
        ("dtype", "uint8", "one of bfloat16, float32, float16, float64, int8, float8_e4m3fn, float8_e5m2"),
        ("include", [1], "a glob pattern"),
        ("include", 5, "a glob pattern"),
        ("priority", 0.5, "a glob pattern"),
        ("exclude", [b"x"], "a glob pattern"),
        ("priority", [None], "a glob pattern"),
        ("adapters", [dict], "objects with a method place(name, tensor)"),
        ("adapters", 7, "objects with a method place(name, tensor)"),
    ],
)
def test_a_wrong_argument_is_named(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        Client(**{key: value})
    assert expected in str(caught.value) and repr(value) in str(caught.value).replace("/push.sock", "")
    assert key in str(caught.value) or key == "endpoint"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANKD_MODE", "off", "one of online, offline, disabled"),
        ("RANKD_EVERY_STEPS", "0", "an integer of at least 1"),
        ("RANKD_EVERY_STEPS", "ten", "an integer of at least 1"),
        ("RANKD_EVERY_STEPS", "-3", "an integer of at least 1"),
        ("RANKD_EVERY_STEPS", "9" * 5000, "an integer of at least 1"),
        ("RANKD_RUN", "x" * 257, "a name of 1 to 256"),
        ("RANKD_ECHO", "yes", "0 or 1"),
        ("RANKD_URL", "rankd", "expected ipc://DIR or tcp://HOST:PORT"),
    ],
)
def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="expected") as caught:
        Client()
    assert expected in str(caught.value) and value in str(caught.value)


def test_argument_before_environment_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().config.every_steps == 1
    monkeypatch.setenv("RANKD_EVERY_STEPS", "20")
    monkeypatch.setenv("RANKD_RUN", "from the environment")
    monkeypatch.setenv("RANKD_ECHO", "0")
    assert (Client().config.every_steps, Client().run, Client().config.echo) == (20, "from the environment", False)
    client = Client("given", "tcp://localhost:7777", every_steps=3, echo=True)
    assert (client.config.every_steps, client.run, client.config.echo) == (3, "given", True)
    assert client.config.address == "tcp://localhost:7777"


def test_an_empty_endpoint_is_none_given() -> None:
    assert Client(endpoint="").config.address == Client().config.address == "ipc:///nowhere/rankd/push.sock"


def test_memory_is_twice_a_push_unless_given() -> None:
    assert Client(max_push_bytes=100).config.max_memory_bytes == 200
    assert Client(max_push_bytes=100, max_memory_bytes=50).config.max_memory_bytes == 50


def test_patterns_are_one_or_several() -> None:
    config = Client(include="h.*", exclude=["a", "b"], priority=("lm_head*",)).config
    assert (config.include, config.exclude, config.priority) == (("h.*",), ("a", "b"), ("lm_head*",))
    assert Client().config.include is None


def test_a_run_without_a_name_gets_a_readable_one() -> None:
    run = Client().run
    assert 0 < len(run) <= 256 and run.isprintable()


def test_a_discovery_file_need_not_be_there_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = (tmp_path / "rankd.json").as_uri()
    monkeypatch.setenv("RANKD_URL", url)
    assert Client().config.address == url
    with pytest.raises(ValueError, match="expected file:///PATH"):
        Client(endpoint="file://node7/x")
