"""A trainer that forks, as data loaders do: children neither hang nor speak for it, and it goes on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 240.0
"""Ten processes on what may be one core."""

# Children of all kinds while the client is connected and pushes: each must end by itself, and none speaks for it.
FORKS = """
import gc, os, sys, threading, time, torch
from rankd_client import Client, PushReceipt

client = Client("forks", sys.argv[1], max_overhead=None, strict=True, echo=False)
model = {str(i): torch.randn(256, 256) for i in range(8)}
client.push(model)
assert client.flush(200.0)
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
    assert client.alerts() == [] and client.flush(200.0)
    client.close()
    client.__exit__(None, None, None)

def push_itself():
    with Client("child", sys.argv[1], max_overhead=None, strict=True, echo=False) as own:
        assert own.push(model).num_queued == 8 and own.flush(200.0)

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
assert client.flush(200.0) and client.connected and client.num_errors == 0
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
        program = program.replace("assert client.flush(200.0)\n", "").replace("leave, forget, use, push_itself", "use")
        program = program.replace("client.flush(200.0) and client.connected and ", "")
    done = fork_server.run(
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
    assert client.flush(200.0) and client.num_errors == 0
    print("all ended", flush=True)

main()
"""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RANKD_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def test_workers_of_data_loaders_that_fork_while_a_push_is_under_way(serve: Any) -> None:
    done = fork_server.run(
        [sys.executable, "-c", WORKERS, serve().url],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (0, "all ended\n"), done.stderr
