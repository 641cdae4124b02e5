"""The client's distribution alone: in an environment without torch, or anything else of ours, it follows a daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
BUILD_PRODUCTS = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")

# The daemon has no history of a layer, so its first snapshot may be the alert: a new layer each time, until stopped.
PUSH = """
import itertools, sys, time
import torch
from rankd_client import Client

client = Client(run="alone", endpoint=sys.argv[1], max_overhead=None, strict=True)
for step in itertools.count():
    client.push({f"layers.{step}.weight": torch.full((8, 8), torch.nan)}, step=step)
    time.sleep(0.2)
"""

SUBSCRIBE = """
import importlib.util, json, sys
import rankd_client

alert = next(iter(rankd_client.subscribe(endpoint=sys.argv[1], timeout=60.0)))
absent = [name for name in ("torch", "numpy", "rankd") if importlib.util.find_spec(name) is None]
print(json.dumps({"alert": alert, "absent": absent, "home": rankd_client.__file__}))
"""


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with rankd-client and what it depends on, at the pinned versions."""
    folder = tmp_path_factory.mktemp("alone")
    source = shutil.copytree(ROOT / "client", folder / "client", ignore=BUILD_PRODUCTS)  # pip builds inside the source
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    python = folder / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    environment = {**os.environ, "PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True, timeout=300, env=environment)
    return python


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The user's environment less what steers rankd, with a place of its own for whatever is written."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RANKD_")}
    return {**kept, "RANKD_DATA": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    """The URL of a daemon that takes pushes."""
    command = [sys.executable, "-m", "rankd", "serve", "--url", "tcp://127.0.0.1:0", "--http", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as daemon:
        try:
            assert daemon.stdout is not None
            ready = daemon.stdout.readline().split()
            assert ready[:1] == ["ready"]
            yield dict(field.split("=", 1) for field in ready[1:])["push"]
        finally:
            daemon.terminate()
            assert daemon.wait(timeout=30) == 0


def test_subscribes_without_torch(client_python: Path, environment: dict[str, str], url: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PUSH, url], env=environment) as trainer:
        try:
            done = subprocess.run(
                [client_python, "-I", "-c", SUBSCRIBE, url],
                capture_output=True,
                text=True,
                timeout=120,
                env=environment,
                cwd=tmp_path,
            )
            assert trainer.poll() is None, "the trainer ended by itself"
        finally:
            trainer.kill()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["absent"] == ["torch", "numpy", "rankd"]
    assert Path(seen["home"]).is_relative_to(client_python.parents[1])
    assert (seen["alert"]["rule"], seen["alert"]["run"], seen["alert"]["state"]) == ("nonfinite", "alone", "firing")
    assert seen["alert"]["layer"] == f"layers.{seen['alert']['step']}.weight"


def test_requires_pyzmq_and_msgpack_only(client_python: Path) -> None:
    listed = subprocess.run([client_python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    names = {row["name"].lower() for row in json.loads(listed.stdout)}
    assert names - {"pip", "setuptools"} == {"rankd-client", "pyzmq", "msgpack"}
