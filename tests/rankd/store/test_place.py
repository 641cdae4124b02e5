"""Where a history may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankd.store.errors import PlaceError, StoreInUse
from rankd.store.place import lock, prepare, refused
from rankd.store.schema import FILE_NAME

MOUNTS = r"""
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
31 30 0:31 / /home/local rw,relatime - xfs /dev/vdb rw
32 22 0:32 / /mnt/with\040space rw - lustre 10.0.0.1@tcp:/scratch rw
33 22 0:33 / /work rw master:3 propagate_from:2 - beegfs beegfs_nodev rw
34 22 0:34 / /over rw - ext4 /dev/vdc rw
35 34 0:35 / /over rw - fuse.sshfs me@there:/ rw
a line that is none
"""


@pytest.mark.parametrize(
    ("directory", "file_system"),
    [
        ("/home/me/runs", "nfs4"),
        ("/home", "nfs4"),
        ("/mnt/with space/x", "lustre"),
        ("/work/x", "beegfs"),
        ("/over/x", "fuse.sshfs"),
    ],
)
def test_shared_file_system_is_refused_by_name(directory: str, file_system: str) -> None:
    reason = refused(Path(directory), MOUNTS)
    assert reason is not None and f"({file_system})" in reason


@pytest.mark.parametrize("directory", ["/home/local/x", "/homes", "/var/lib/rankd", "/"])
def test_local_disk_is_allowed(directory: str) -> None:
    assert refused(Path(directory), MOUNTS) is None


def test_unknown_is_allowed() -> None:
    assert refused(Path("/x"), "") is None


def test_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    made = prepare(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700


def test_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert prepare(tmp_path / "link") == (tmp_path / "real").resolve()


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(PlaceError, match="expected a directory"):
        prepare(tmp_path / "data")


def test_directory_that_others_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PlaceError, match="others may write to it"):
        prepare(tmp_path)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Root may write anything: the child is somebody else."""
    (tmp_path / FILE_NAME).write_text("")
    (tmp_path / FILE_NAME).chmod(0o400)
    if os.getuid() != 0:
        with pytest.raises(PlaceError, match="cannot be written"):
            prepare(tmp_path)
        return
    child = os.fork()
    if child == 0:
        os.seteuid(65534)
        try:
            lock(tmp_path)
        except PlaceError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


def test_one_daemon_a_directory(tmp_path: Path) -> None:
    first = lock(tmp_path)
    with pytest.raises(StoreInUse, match=rf"process {os.getpid()}\)"):
        lock(tmp_path)
    os.close(first)
    os.close(lock(tmp_path))
