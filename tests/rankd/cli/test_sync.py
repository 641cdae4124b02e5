"""Which jobs of a spool a sync takes on, with no daemon there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from spooled import Spooled, chunk_of

from rankd.cli.sync import _ship_all
from rankd.sync.progress import Progress
from rankd_client.wire import Shard

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


@contextmanager
def living(session: Path) -> Iterator[None]:
    """A process has the lock of a session: ours would not be seen by ourselves."""
    command = [sys.executable, "-c", HOLD, str(session / "head")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        try:
            yield
        finally:
            process.communicate()


def test_a_job_that_was_started_again_waits_while_parts_of_the_one_before_it_may_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"ipc://{tmp_path}/nobody.sock"
    spool, upper, lower = tmp_path / "spool", Shard(rectangles=((0, 2, 0, 4),)), Shard(rectangles=((2, 4, 0, 4),))
    parts = [(0, 0, 1, upper), (0, 0, 2, upper), (1, 1, 1, lower), (2, 0, 2, upper), (3, 1, 2, lower)]
    writers: dict[int, Spooled] = {}
    for session, process_rank, step, shard in parts:
        if session not in writers:
            writers[session] = Spooled(spool, "lm", bytes([session] * 16), process_rank=process_rank, world_size=2)
        writers[session].keep(chunk_of("a", step, shard=shard))
    for writer in writers.values():
        writer.close()
    for session in (0, 1):  # step 1 went; that of process 1 hangs with its part of step 2
        progress = Progress(writers[session].path)
        progress.mark([0])
        progress.close()
    with living(writers[1].path):
        tallies, is_well = _ship_all(spool, address, None, 10.0, False)
    assert [(tally.num_before, tally.num_left) for tally in tallies] == [(1, 1), (1, 0)] and not is_well
    assert "lm: a job that was started again waits for what the one before it has left" in capsys.readouterr().err
    tallies, is_well = _ship_all(spool, address, None, 0.0, False)
    assert [(tally.num_incomplete, tally.num_left) for tally in tallies] == [(1, 0), (0, 0), (0, 1), (0, 1)]
    assert "no daemon takes this in" in capsys.readouterr().err and not is_well
