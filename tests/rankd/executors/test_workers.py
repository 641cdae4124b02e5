"""The interpreter's end, in processes of their own."""

import subprocess
import sys
import threading
import time

import fork_server
import pytest

from rankd.executors.workers import Workers

BEGIN = f"""
import os, sys, warnings
sys.path[:] = {sys.path!r}
import torch
from works import CPU, work
from rankd.executors.apart.solver import in_processes
from rankd.executors.batches import BatchExecutor
from rankd.executors.threads import ThreadExecutor
from rankd.weights import DEFAULT_SETTINGS

torch.set_num_threads(1)
make = {{
    "batches": lambda: BatchExecutor([CPU, CPU], print, DEFAULT_SETTINGS),
    "processes": lambda: in_processes([CPU, CPU], print, DEFAULT_SETTINGS),
    "threads": lambda: ThreadExecutor(CPU, print, DEFAULT_SETTINGS),
}}
executor = make[sys.argv[1]]()
futures = [executor.submit(work(torch.randn(300, 300), str(number))) for number in range(8)]
futures[0].result(60)
"""
END = """
if sys.argv[2] == "closed":
    executor.close()
sys.exit(3)
"""
END_OF_FORK = """
warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
if not (child := os.fork()):
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
for future in (*futures, executor.submit(work(torch.eye(2)))):
    future.result(60)
executor.close()
sys.exit(3)
"""


HANG = """
import sys, threading
from rankd.executors import workers
workers.CLOSED_SECONDS, workers.EXIT_SECONDS = 0.1, 1e6
those = workers.Workers(lambda: None)
those.start("measure-test", threading.Event().wait)
those.is_closed = True
sys.exit(3)
"""


def test_the_end_waits_for_long_only_where_nothing_was_closed() -> None:
    done = fork_server.run([sys.executable, "-c", f"import sys\nsys.path[:] = {sys.path!r}\n{HANG}"], timeout=120)
    assert done.returncode == 3


def end(how: str, *arguments: str) -> tuple[int, bytes]:
    """Exit code, and all that was written."""
    command = [sys.executable, "-c", BEGIN + how, *arguments]
    done = fork_server.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout


@pytest.mark.parametrize("closed", ["closed", "not closed"])
@pytest.mark.parametrize(("executor", "num_ends"), [("batches", 10), ("processes", 1), ("threads", 1)])
def test_the_interpreter_may_end_while_something_is_measured(executor: str, num_ends: int, closed: str) -> None:
    assert [end(END, executor, closed) for _ in range(num_ends)] == [(3, b"")] * num_ends


def test_the_end_of_a_fork_ends_nothing_of_the_process_that_forked() -> None:
    assert end(END_OF_FORK, "processes") == (3, b"")


def test_a_thread_that_does_not_end_is_waited_for_only_so_long() -> None:
    leave = threading.Event()
    workers = Workers(leave.set)
    workers.start("measure-test", leave.wait)
    workers.join(time.monotonic() + 0.05)
    (thread,) = workers._threads
    assert thread.is_alive() and thread.name == "measure-test"
    workers.close()
    workers.join(time.monotonic() + 60)
    assert not thread.is_alive()
