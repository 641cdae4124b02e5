import json
import os
from pathlib import Path
from typing import Any

import pytest

from rankd_client.endpoints import EndpointError, Endpoints, NotThereYet, endpoints_of, is_loopback, locate

FIELDS = {"version": 1, "push": "tcp://node7:1", "alerts": "tcp://node7:2", "query": "tcp://node7:3", "more": [1]}


def write(path: Path, content: Any = FIELDS, mode: int = 0o644) -> str:
    """The URL of a discovery file with this content."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path.as_uri()


def test_a_discovery_file_names_a_daemon(tmp_path: Path) -> None:
    url = write(tmp_path / "with space.json")
    assert endpoints_of(url) == Endpoints("tcp://node7:1", "tcp://node7:2", "tcp://node7:3")
    assert [locate(url, name) for name in ("push", "query")] == ["tcp://node7:1", "tcp://node7:3"]
    assert locate("tcp://other:1", "push") == "tcp://other:1"
    write(tmp_path / "with space.json", {**FIELDS, "push": "tcp://node8:1"})
    assert locate(url, "push") == "tcp://node8:1", "read anew each time"


def test_one_that_is_missing_may_come_yet(tmp_path: Path) -> None:
    with pytest.raises(NotThereYet, match="no such file; expected the discovery file of a running rankd"):
        endpoints_of((tmp_path / "d").as_uri())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        {**FIELDS, "version": 2},
        {"version": 1},
        {**FIELDS, "push": 3},
        {**FIELDS, "push": "tcp://node7:0"},
        {**FIELDS, "push": "http://node7:1"},
        {**FIELDS, "alerts": "ipc:///a\0b"},
        "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=lambda content: str(content)[:20],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: Any) -> None:
    with pytest.raises(EndpointError, match="expected the discovery file of a rankd"):
        endpoints_of(write(tmp_path / "d", content))


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(EndpointError, match="can be written by others; expected mode 0644"):
        endpoints_of(write(tmp_path / "d", FIELDS, mode))


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path / "d")
    if os.getuid() == 0:
        os.chown(tmp_path / "d", 12345, 0)
    else:
        me = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: me + 1)
    with pytest.raises(EndpointError, match="belongs to user id"):
        endpoints_of(url)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(EndpointError, match=r"expected a regular file|cannot be read"):
            endpoints_of(path.as_uri())


@pytest.mark.parametrize("url", ["file://node7/x", "file:x", "file://", "file:///a%00b"])
def test_a_url_that_is_no_path_is_named(url: str) -> None:
    with pytest.raises(EndpointError, match="expected file:///PATH"):
        endpoints_of(url)


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("ipc:///x", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("tcp://127.example.org:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://*:1", False),
    ],
)
def test_what_only_this_host_can_reach(address: str, here: bool) -> None:
    assert is_loopback(address) is here
