"""What is forked is a process like one that was started: by its parent, streams, surroundings and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest

SEEN = """
import json, os, sys, threading
file = __file__ if "__file__" in globals() else None
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "main": sys.modules["__main__"].__dict__ is globals(),
    "parent": os.getppid(), "leads": os.getsid(0) == os.getpid(), "directory": os.getcwd(), "file": file,
    "threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")),
    "environment": dict(os.environ), "said": sys.stdin.read(),
}))
"""


def seen(module: Any, command: list[str], **options: Any) -> dict[str, Any]:
    done = module.run([sys.executable, *command], input="words", capture_output=True, text=True, **options)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("how", ["-c", "-m", "script"])
@pytest.mark.parametrize("start_new_session", [False, True])
def test_it_finds_what_a_process_that_was_started_finds(tmp_path: Path, how: str, start_new_session: bool) -> None:
    (tmp_path / "look.py").write_text(SEEN)
    command = {"-c": ["-c", SEEN], "-m": ["-m", "look"], "script": [str(tmp_path / "look.py")]}[how]
    options = {"cwd": tmp_path, "env": {**os.environ, "A": "ö="}, "start_new_session": start_new_session}
    forked = seen(fork_server, [*command, "x", ""], **options)
    assert forked == seen(subprocess, [*command, "x", ""], **options)
    assert (forked["parent"], forked["leads"], forked["said"]) == (os.getpid(), start_new_session, "words")


@pytest.mark.parametrize(
    ("code", "returncode", "last"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("import warnings; warnings.warn('w', stacklevel=1)", 0, "<string>:1: UserWarning: w"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit, sys; atexit.register(lambda: print('end', file=sys.stderr))", 0, "end"),
        ("import sys, threading; threading.Timer(0.1, lambda: print('late', file=sys.stderr)).start()", 0, "late"),
    ],
)
def test_it_ends_as_one_does(code: str, returncode: int, last: str) -> None:
    for module in (fork_server, subprocess):
        done = module.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1]) == (returncode, "", last)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_signals_reach_it_alone(signum: int, code: int) -> None:
    program = "import sys, time\ntry:\n    print('runs', flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", f"{program}except KeyboardInterrupt:\n    sys.exit(130)"]
    with (
        fork_server.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        fork_server.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        assert first.stdout is not None and second.stdout is not None
        assert first.stdout.readline() == second.stdout.readline() == "runs\n"
        first.send_signal(signum)
        assert first.wait(60) == code
        assert second.poll() is None
        second.kill()


def test_two_do_not_draw_the_same_numbers() -> None:
    command = [
        sys.executable,
        "-c",
        "import random, numpy, uuid; print(random.random(), numpy.random.rand(), uuid.uuid4())",
    ]
    first, second = (fork_server.run(command, capture_output=True, text=True).stdout.split() for _ in range(2))
    assert len(first) == 3 and not set(first) & set(second)


LOADED = [sys.executable, "-c", "import sys; print('torch' in sys.modules)"]


@pytest.mark.parametrize(
    ("command", "options", "loaded"),
    [
        (LOADED, {}, "True"),
        (LOADED, {"env": {**os.environ, "OMP_DYNAMIC": "true"}}, "False"),
        (LOADED, {"env": {**os.environ, "PYTHONHASHSEED": "1"}}, "False"),
        ([sys.executable, "-I", *LOADED[1:]], {}, "False"),
        (LOADED, {"pass_fds": [2]}, "False"),
        (["/bin/echo", "False"], {}, "False"),
    ],
)
def test_what_a_fork_cannot_be_is_started(command: list[str], options: dict[str, Any], loaded: str) -> None:
    assert fork_server.run(command, capture_output=True, text=True, **options).stdout == f"{loaded}\n"


def test_warnings_are_errors_where_they_are_asked_to_be() -> None:
    code = "import sys, warnings; assert 'torch' in sys.modules; warnings.warn('w', stacklevel=1)"
    done = fork_server.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("UserWarning: w\n")


def test_run_raises_what_subprocess_does() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.1)
    with pytest.raises(subprocess.CalledProcessError):
        fork_server.run([sys.executable, "-c", "raise SystemExit(1)"], check=True)
