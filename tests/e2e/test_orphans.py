"""A daemon that was started for a command does not outlive it, however the command ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60

CHILD = "import os, time; print(os.environ['RANKD_URL'], flush=True); time.sleep(60)"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_run_leaves_no_daemon_behind(signum: int) -> None:
    command = [sys.executable, "-m", "rankd", "run", "--", sys.executable, "-c", CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, start_new_session=True, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        url = running.stdout.readline().strip()
        assert url, running.stderr.read()
        running.send_signal(signum)
        running.wait(WAIT_SECONDS)
        if signum == signal.SIGKILL:
            os.killpg(running.pid, signal.SIGKILL)  # the child, as a terminal that is gone would
        # The daemon holds our stderr too: the pipe ends when it has ended.
        assert running.communicate(timeout=WAIT_SECONDS)[1].count("Traceback") == 0
    if signum != signal.SIGKILL:
        assert running.returncode == 128 + signum
        assert not Path(url.removeprefix("ipc://")).exists()


@pytest.mark.parametrize("signum", [signal.SIGKILL])
def test_demo_leaves_no_process_behind(signum: int) -> None:
    command = [sys.executable, "-m", "rankd", "demo"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, start_new_session=True, stdout=pipe, stderr=pipe, text=True) as demo:
        assert demo.stdout is not None
        while "step 100" not in demo.stdout.readline():
            pass
        demo.send_signal(signum)
        demo.wait(WAIT_SECONDS)
        demo.communicate(timeout=WAIT_SECONDS)  # daemon and trainer hold our stderr: it ends with the last of them
    assert demo.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
