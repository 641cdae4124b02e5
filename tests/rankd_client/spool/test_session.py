"""What one process writes: on disks that are full or gone, with budgets used up, and files that others remove."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from spooled import Spooled, bytes_in, chunk_of, records_of

from rankd_client.spool.room import SHIPPED

RECORD_BYTES = 500
"""A snapshot of chunk_of with its head, generously."""


def steps_of(session: Path) -> list[int]:
    return [chunk.step for _, chunk, _ in records_of(session)]


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    writer = Spooled(tmp_path / "deep" / "spool")
    writer.keep(chunk_of("a", 1))
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "deep" / "spool", writer.path)] == [0o700] * 2
    assert {path.stat().st_mode & 0o777 for path in writer.path.iterdir()} == {0o600}
    writer.close()


def test_a_directory_that_others_can_write_to_gets_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    writer = Spooled(tmp_path)
    with pytest.raises(PermissionError, match="expected mode 0700"):
        writer.keep(chunk_of("a", 1))
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_place_of_the_directory_is_an_error_each_time_and_then_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    writer = Spooled(tmp_path / "spool")
    for step in range(3):
        with pytest.raises(OSError):
            writer.keep(chunk_of("a", step))
    (tmp_path / "spool").unlink()
    assert writer.keep(chunk_of("a", 3)) and steps_of(writer.path) == [3]
    writer.close()


def test_a_directory_that_was_taken_away_is_made_anew(tmp_path: Path) -> None:
    writer = Spooled(tmp_path / "spool")
    for step in range(4):
        writer.keep(chunk_of("a", step))
    shutil.rmtree(tmp_path / "spool")
    for step in range(4, 8):
        writer.keep(chunk_of("a", step))
    assert steps_of(writer.path) == [4, 5, 6, 7] and writer.session.num_kept == 4
    writer.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from spooled import Spooled, chunk_of
writer = Spooled(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1200, resource.RLIM_INFINITY))
written = 0
for step in range(8):
    try:
        writer.keep(chunk_of("a", 5, (8, 8)))
        written += 1
    except OSError as error:
        assert error.errno == 27, error
assert writer.path.joinpath("03.spool").stat().st_size < 1200
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert writer.keep(chunk_of("a", 5, (8, 8)))
print(written + 1)
"""


def test_of_what_no_longer_fits_on_the_disk_nothing_stays(tmp_path: Path) -> None:
    """Each write fails in the middle: by a limit of the kernel's, as on a disk that is full."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "support")}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert 3 <= int(done.stdout) < 9
    assert steps_of(tmp_path / bytes(16).hex()) == [5] * int(done.stdout)


def test_within_its_budget_the_start_stays_and_the_rest_gets_thin_evenly(tmp_path: Path) -> None:
    budget = 60_000
    writer = Spooled(tmp_path, max_bytes=budget)
    for step in range(2000):
        for layer in "ab":
            assert writer.keep(chunk_of(layer, step))
            assert bytes_in(tmp_path) <= budget
    assert bytes_in(tmp_path) > budget / 2
    for layer in "ab":
        steps = [chunk.step for _, chunk, _ in records_of(writer.path) if chunk.layer == layer]
        assert steps[:3] == [0, 1, 2] and steps[-1] > 1900
        assert all(16 * (after - before) <= max(before, 16) for before, after in pairwise(steps))
    session = writer.session
    assert session.num_kept + session.num_thinned == 4000 and session.num_kept == len(records_of(writer.path))
    assert session.kept_bytes + 32 * len(list(writer.path.glob("*.spool"))) == bytes_in(tmp_path)
    writer.close()


def test_what_was_shipped_goes_first_then_the_finest_whoever_wrote_it(tmp_path: Path) -> None:
    budget = 30 * RECORD_BYTES
    shipped, idle = (Spooled(tmp_path, session=bytes([number] * 16), max_bytes=budget) for number in (1, 2))
    for step in range(20):
        shipped.keep(chunk_of("a", step))
        idle.keep(chunk_of("a", step))
    shipped.close()
    (shipped.path / SHIPPED).touch()
    busy = Spooled(tmp_path, session=bytes([3] * 16), max_bytes=budget)
    for step in range(1000):
        assert busy.keep(chunk_of("a", step))
        assert bytes_in(tmp_path) <= budget
    assert not shipped.path.exists()
    kept = [len(records_of(writer.path)) for writer in (idle, busy)]
    assert 5 <= kept[0] < 20 < kept[1] and steps_of(idle.path)[0] == steps_of(busy.path)[0] == 0
    assert idle.keep(chunk_of("a", 20)) and idle.session.num_kept == len(records_of(idle.path))  # it noticed
    assert idle.session.num_thinned == 21 - idle.session.num_kept
    busy.close()
    idle.close()


def test_where_nothing_can_be_thinned_out_the_new_ones_are_not_kept(tmp_path: Path) -> None:
    writer = Spooled(tmp_path, max_bytes=4 * RECORD_BYTES)
    kept = [writer.keep(chunk_of(f"layer {number}", 0, (8, 8))) for number in range(20)]
    assert kept == sorted(kept, reverse=True) and 3 <= sum(kept) < 20
    assert bytes_in(tmp_path) <= 4 * RECORD_BYTES
    assert not writer.keep(chunk_of("huge", 0, (64, 64)))
    writer.close()
