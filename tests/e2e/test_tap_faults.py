"""Whatever happens to the daemon, or to the trainer: pushes go on, and in the end the newest of each layer is recorded
once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pushing import LAYERS, pushing, steps_recorded, weights

from rankd_client import Client

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0
OPTIONS: dict[str, Any] = {"max_overhead": None, "strict": True, "echo": False}


def assert_newest_recorded_once(data: Path, run: str, newest: int, size: int = 16) -> None:
    steps = steps_recorded(data, run, size)
    assert set(steps) == set(LAYERS)
    for layer, recorded in steps.items():
        assert recorded == sorted(set(recorded)), f"{layer} was recorded twice, or went back"
        assert recorded[-1] == newest, layer


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.long
def test_a_daemon_that_is_killed_and_replaced_at_any_moment(serve: Any, directory: Path) -> None:
    """The last two have a history of their own: to the trainer another daemon, which knows nothing of what was sent."""
    moments = random.Random(0)
    served = serve("--data", str(directory / "first"))
    with Client("killed", served.url, **OPTIONS) as client:
        with pushing(client) as trainer:
            for data in ("first", "second", "second"):
                wait_until(lambda: client.connected, "it does not come back")
                trainer.wait(moments.randrange(1, 300))
                served.process.kill()
                served.process.wait(WAIT_SECONDS)
                served = serve("--data", str(directory / data))
            trainer.wait(1)
        assert client.flush(WAIT_SECONDS) and client.num_errors == 0
    served.stop()
    assert_newest_recorded_once(directory / "second", "killed", trainer.step)
    for recorded in steps_recorded(directory / "first", "killed").values():
        assert recorded == sorted(set(recorded))


@pytest.mark.long
def test_a_daemon_that_is_frozen_at_any_moment(serve: Any, directory: Path) -> None:
    """For a moment, and for so long that the client gives the connection up and sends everything again."""
    moments = random.Random(1)
    served = serve("--data", str(directory / "data"))
    with Client("frozen", served.url, **OPTIONS) as client:
        with pushing(client) as trainer:
            wait_until(lambda: client.connected, "it does not connect")
            for given_up in (False, False, True):
                trainer.wait(moments.randrange(1, 200))
                served.process.send_signal(signal.SIGSTOP)
                try:
                    trainer.wait(moments.randrange(100, 300))
                    if given_up:
                        wait_until(lambda: not client.connected, "a silent daemon counts as there")
                finally:
                    served.process.send_signal(signal.SIGCONT)
        assert client.flush(WAIT_SECONDS) and client.num_errors == 0
    served.stop()
    assert_newest_recorded_once(directory / "data", "frozen", trainer.step)


# Pushes 48 MB for ever.
ENDLESS = """
import sys, torch
from rankd_client import Client

client = Client("endless", sys.argv[1], max_overhead=None, strict=True)
model = {str(i): torch.randn(2048, 2048) for i in range(6)}
print("pushing", flush=True)
while True:
    client.push(model)
"""


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def mapped_memfds(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_trainers_that_are_killed_in_the_middle_of_a_push_leave_nothing_in_the_daemon(
    serve: Any, directory: Path
) -> None:
    config = directory / "rankd.toml"
    config.write_text("[limits]\npeer_timeout_seconds = 3.0\nassembly_timeout_seconds = 2.0\n")
    served = serve("--config", str(config), "--http", "127.0.0.1:0")
    pid = served.process.pid

    def assembly_bytes() -> int:
        with urllib.request.urlopen(f"{served.ready['http']}/healthz", timeout=WAIT_SECONDS) as answer:
            return int(json.load(answer)["assembly_bytes"])

    with Client("other", served.url, **OPTIONS) as other:
        other.push(weights(0), step=0)
        assert other.flush(WAIT_SECONDS)
        num_files, num_memfds = open_files(pid), mapped_memfds(pid)
        for moment in (0.2, 0.35, 0.5):
            trainer = subprocess.Popen([sys.executable, "-c", ENDLESS, served.url], stdout=subprocess.PIPE)
            try:
                assert trainer.stdout is not None and trainer.stdout.readline() == b"pushing\n"
                time.sleep(moment)
            finally:
                trainer.kill()
                trainer.communicate()
        other.push(weights(1), step=1)
        assert other.flush(WAIT_SECONDS), "the others are served"
        wait_until(lambda: open_files(pid) <= num_files, "files are still open")
        wait_until(lambda: mapped_memfds(pid) <= num_memfds, "a trainer's memory is still mapped")
        wait_until(lambda: assembly_bytes() == 0, "a part of a layer is kept")


# Children of all kinds while the client is connected and pushes: each must end by itself, and none speaks for it.
FORKS = """
import gc, os, sys, threading, time, torch
from rankd_client import Client, PushReceipt

client = Client("forks", sys.argv[1], max_overhead=None, strict=True, echo=False)
model = {str(i): torch.randn(256, 256) for i in range(8)}
client.push(model)
assert client.flush(60.0)
stopped, pushes = threading.Event(), []

def keep_pushing():
    while not stopped.wait(0.002):
        pushes.append(client.push(model))

thread = threading.Thread(target=keep_pushing)
thread.start()

def leave():
    "Ends as a program does, with everything that is done at its end."

def forget():
    global client
    del client
    gc.collect()

def use():
    assert client.push(model, step=5) == PushReceipt(5)
    assert client.alerts() == [] and client.flush(60.0)
    client.close()
    client.__exit__(None, None, None)

def push_itself():
    with Client("child", sys.argv[1], max_overhead=None, strict=True, echo=False) as own:
        assert own.push(model).num_queued == 8 and own.flush(60.0)

children = []
for work in [leave, forget, use, push_itself] * 2:
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
num_before = len(pushes)
while len(pushes) < num_before + 10 and thread.is_alive():
    time.sleep(0.01)
stopped.set()
thread.join()
assert client.flush(60.0) and client.connected and client.num_errors == 0
assert codes == [0] * len(codes), codes
print("all ended", flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("alive", [True, False])
def test_children_that_a_trainer_forks(serve: Any, directory: Path, alive: bool) -> None:
    program, url = FORKS, f"ipc://{directory}/nobody"
    if alive:
        url = serve().url
    else:  # nobody records anything, and a child that pushes would wait in vain
        program = program.replace("assert client.flush(60.0)\n", "").replace("leave, forget, use, push_itself", "use")
        program = program.replace("client.flush(60.0) and client.connected and ", "")
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=WAIT_SECONDS, env=environment()
    )
    assert (done.returncode, done.stdout) == (0, "all ended\n"), done.stderr


# Workers live through the epochs, and fork while a push of another thread is under way.
WORKERS = """
import sys, threading, torch
from rankd_client import Client

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        return torch.randn(32)

def main():
    client = Client("workers", sys.argv[1], max_overhead=None, strict=True, echo=False)
    model = torch.nn.Sequential(torch.nn.Linear(32, 512), torch.nn.Linear(512, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stopped = threading.Event()
    beside = {"beside": torch.randn(512, 512)}
    thread = threading.Thread(target=lambda: [client.push(beside) for _ in iter(lambda: stopped.wait(0.002), True)])
    thread.start()
    for persistent in (False, True):
        loader = torch.utils.data.DataLoader(
            Data(), batch_size=4, num_workers=2, multiprocessing_context="fork", persistent_workers=persistent
        )
        for epoch in range(3):
            for batch in loader:
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
                client.push(model)
    stopped.set()
    thread.join()
    client.push(model)
    assert client.flush(60.0) and client.num_errors == 0
    print("all ended", flush=True)

main()
"""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RANKD_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def test_workers_of_data_loaders_that_fork_while_a_push_is_under_way(serve: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, serve().url],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (0, "all ended\n"), done.stderr
