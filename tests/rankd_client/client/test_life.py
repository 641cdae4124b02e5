"""A client from start to end: modes in which it does nothing, flush and close, what it tells and leaves behind."""

from __future__ import annotations

import atexit
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from absent_daemon import Make, model_of
from torch import nn

from rankd_client import Client, PushReceipt


@pytest.mark.parametrize("timeout", [-1, 0, -float("inf"), 0.01, True, float("nan"), "1", b"", [1], object()])
def test_flush_and_close_take_any_timeout(make: Make, timeout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd_client.client.FLUSH_SECONDS", 0.01)
    client, wrong = make(strict=False), isinstance(timeout, bool | str | bytes | list) or type(timeout) is object
    wrong = wrong or timeout != timeout
    client.push(model_of())
    assert not client.flush(timeout) and client.num_errors == wrong
    client.close(timeout)
    assert client.num_errors == 2 * wrong
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())
    if wrong:
        with pytest.raises(ValueError, match=r"timeout=.*: expected a number of seconds"):
            strict = make()
            strict.push(model_of())
            strict.flush(timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 10**400, None])
def test_a_timeout_beyond_what_locks_can_wait(make: Make, timeout: Any) -> None:
    client = make()
    client.push(nn.Module())
    assert client.flush(timeout)  # nothing was queued
    client.push(model_of())
    client.close(timeout)
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())


def test_disabled_does_nothing_at_all(tmp_path: Path) -> None:
    program = (
        "import sys, threading, rankd_client\n"
        "client = rankd_client.Client(run='x')\n"
        "receipt = client.push(object(), step=-5)\n"
        "assert receipt == rankd_client.PushReceipt(-5), receipt\n"
        "assert client.alerts() == [] and client.flush() and not client.connected\n"
        "client.close()\n"
        "assert threading.active_count() == 1\n"
        "assert not {'torch', 'zmq'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "RANKD_MODE": "disabled", "RANKD_URL": f"ipc://{tmp_path}"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")


def test_importing_brings_nothing_heavy() -> None:
    program = "import sys, rankd_client; print({'torch', 'zmq', 'msgpack', 'numpy', 'asyncio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_offline_spools_and_says_where(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKD_MODE", "offline")
    monkeypatch.setenv("RANKD_SPOOL", str(tmp_path / "spool"))
    with make() as client:
        assert client.push(model_of()).num_queued == 4
        assert client.flush(30.0) and not client.connected
    told = capfd.readouterr().err
    assert f"4 snapshots of run (1.1 kB) spooled; ship them with: rankd sync {tmp_path}/spool" in told


def test_close_ends_the_thread_and_later_calls_do_nothing(make: Make) -> None:
    with make() as client:
        client.push(model_of())
        assert any(thread.name == "rankd-link" for thread in threading.enumerate())
        assert not client.flush(0.01)
    client.close()
    assert not any(thread.name == "rankd-link" for thread in threading.enumerate())
    assert client.push(model_of()) == PushReceipt(None)


def test_a_forgotten_client_ends_its_thread(make: Make, tmp_path: Path) -> None:
    client = Client("run", f"ipc://{tmp_path}")
    client.push(model_of())
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "rankd-link")
    forgotten = weakref.ref(client)
    del client
    gc.collect()
    assert forgotten() is None
    thread.join(10.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("closed", [True, False])
def test_no_memory_stays_behind(make: Make, tmp_path: Path, closed: bool) -> None:
    make().push(model_of())  # imports what has something to do at the interpreter's end
    num_callbacks = atexit._ncallbacks()
    client = Client("run", f"ipc://{tmp_path}", echo=False)
    client.push(model_of())
    assert client._pusher is not None and client._pusher._link is not None
    memory = [weakref.ref(client._pusher._outbox), weakref.ref(client._pusher._outbox.arena)]
    thread = client._pusher._link._thread
    if closed:
        client.close()
    else:
        del client
        gc.collect()
        thread.join(10.0)
    gc.collect()
    assert not thread.is_alive() and [reference() for reference in memory] == [None, None]
    assert atexit._ncallbacks() == num_callbacks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_nothing(make: Make) -> None:
    client = make(strict=False)
    client.push(model_of())
    child = os.fork()
    if child == 0:
        ok = client.push(model_of(), 5) == PushReceipt(5) and client.alerts() == [] and client.flush(60.0)
        client.close(60.0)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.push(model_of()).num_replaced == 4  # and the parent goes on


def test_push_does_not_wait_while_the_link_holds_a_stuck_connection(make: Make, tmp_path: Path) -> None:
    """A socket that accepts and never answers."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "push.sock"))
        server.listen()
        client = make()
        for _ in range(20):
            assert client.push(model_of()).num_queued == 4
        started = time.monotonic()
        client.close(60.0)
        assert time.monotonic() - started < 30.0  # nobody is connected: the timeout is not waited for
