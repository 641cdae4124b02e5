"""Whether there is room for one more connection."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankd.gate.peers import NUM_SPARE_FILES, has_spare_files

LEFT_FREE = """
import os, resource, sys
from rankd.gate.peers import NUM_SPARE_FILES, has_spare_files
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
any_fd = os.open("/dev/null", os.O_RDONLY)
taken = []
try:
    while True:
        taken.append(os.dup(any_fd))
except OSError:
    pass
for free in (NUM_SPARE_FILES - 1, 1, 1):  # holes, all over the place
    for fd in taken[:: max(1, len(taken) // free)][:free]:
        os.close(fd)
        taken.remove(fd)
    print(has_spare_files(any_fd))
"""


def test_that_many_have_to_be_free_wherever_they_are() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_FREE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_it_takes_no_more_than_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq accepts on a thread of its own, and ends the process where it gets none."""
    open_now, most, close, control = 0, 0, os.close, fcntl.fcntl

    def opening(*of: Any) -> int:
        nonlocal open_now, most
        fd = control(*of)
        open_now += 1
        most = max(most, open_now)
        return fd

    def closing(fd: int) -> None:
        nonlocal open_now
        close(fd)
        open_now -= 1

    with (tmp_path / "any").open("w") as file:
        monkeypatch.setattr("rankd.gate.peers.fcntl.fcntl", opening)
        monkeypatch.setattr("rankd.gate.peers.os.close", closing)
        assert has_spare_files(file.fileno())
    assert (open_now, most) == (0, 1) and NUM_SPARE_FILES > 1
