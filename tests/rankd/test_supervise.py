import asyncio
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankd.supervise import STALLED_SECONDS, Notifier, Stall


@pytest.fixture
def manager(socket_dir: Path) -> Iterator[socket.socket]:
    """A service manager's socket that waits for nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(0)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    messages = []
    try:
        while True:
            messages.append(manager.recv(4096).decode())
    except BlockingIOError:
        return messages


def test_ready_status_and_stopping(manager: socket.socket, socket_dir: Path) -> None:
    manager.bind(str(socket_dir / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": str(socket_dir / "notify")})
    notifier.ready("push=ipc:///x")
    notifier.status("two\nlines")
    notifier.stopping()
    assert heard(manager) == ["READY=1\nSTATUS=push=ipc:///x", "STATUS=two lines", "STOPPING=1\nSTATUS=stopping"]


def test_abstract_names(manager: socket.socket) -> None:
    name = f"rankd-{secrets.token_hex(8)}"
    manager.bind(f"\0{name}")
    Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert heard(manager) == ["READY=1\nSTATUS="]


def test_without_a_manager_nothing_is_sent_and_one_that_is_gone_is_told_of_once(
    caplog: pytest.LogCaptureFixture, socket_dir: Path
) -> None:
    Notifier({}).ready()
    assert caplog.records == []
    notifier = Notifier({"NOTIFY_SOCKET": str(socket_dir / "gone")})
    notifier.ready()
    notifier.stopping()
    assert len(caplog.records) == 1 and "does not listen" in caplog.text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_when_a_sign_of_life_is_wanted(environment: dict[str, str], expected: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", **environment}).watchdog_seconds == expected


def test_no_watchdog_without_a_socket() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_seconds is None


async def test_signs_of_life_come_while_the_loops_move_and_no_longer(
    manager: socket.socket, socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager.bind(str(socket_dir / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": str(socket_dir / "notify"), "WATCHDOG_USEC": "2000"})
    answers = iter([True, True, False, False])
    done = asyncio.Event()

    def moving() -> bool:
        answer = next(answers, None)
        if answer is None:
            done.set()
        return bool(answer)

    task = asyncio.create_task(notifier.keep_alive(moving))
    await asyncio.wait_for(done.wait(), 30)
    task.cancel()
    assert heard(manager) == ["WATCHDOG=1", "WATCHDOG=1"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_where_none_is_wanted_it_ends_at_once() -> None:
    await asyncio.wait_for(Notifier({}).keep_alive(lambda: True), 30)


def test_a_stall_is_something_that_waits_while_nothing_is_done() -> None:
    stall = Stall()
    assert stall.check(0, 0, 0.0) is None
    assert stall.check(0, 0, 1000.0) is None, "idle is no stall"
    assert stall.check(3, 0, 1001.0) is None
    assert stall.check(3, 1, 1000.0 + STALLED_SECONDS) is None, "it moved"
    assert stall.check(5, 1, 999.0 + 2 * STALLED_SECONDS) is None
    text = stall.check(5, 1, 1000.0 + 2 * STALLED_SECONDS)
    assert text == "nothing was measured for 60 s although num_waiting=5"
    assert stall.check(4, 2, 2000.0) is None


RAISED = """
import resource
from rankd.supervise import raise_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (256, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
assert raise_open_files() == raise_open_files() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
"""


def test_the_open_file_limit_is_raised_as_far_as_this_user_may() -> None:
    subprocess.run([sys.executable, "-c", RAISED], check=True, timeout=60)
