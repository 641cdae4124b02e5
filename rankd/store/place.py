"""Where a history may lie: a directory of one's own on a disk of this host."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from pathlib import Path

from rankd.store.errors import PlaceError, StoreInUse
from rankd.store.schema import FILE_NAME

_SHARED = """
    nfs nfs4 cifs smb2 smb3 smbfs ncpfs afs 9p davfs ceph lustre gpfs beegfs beegfs_nodev wekafs panfs pvfs2 orangefs
    gfs2 ocfs2 fuse.sshfs fuse.glusterfs fuse.ceph fuse.ceph-fuse fuse.beegfs fuse.juicefs fuse.s3fs fuse.gcsfuse
    fuse.goofys fuse.rclone fuse.moosefs fuse.mfs fuse.lizardfs fuse.cvmfs fuse.davfs
"""
SHARED_FILE_SYSTEMS = frozenset(_SHARED.split())
"""SQLite's write-ahead log needs memory that all readers share, hence one host; and locks that hold."""


def refused(directory: Path, mountinfo: str) -> str | None:
    """Why `directory` (absolute, links resolved) cannot hold a history, None if it can. `mountinfo` is the text of
    /proc/self/mountinfo; what it does not know is allowed."""
    place, file_system = "", ""
    for line in mountinfo.splitlines():
        mount, separator, source = line.partition(" - ")
        fields, types = mount.split(" "), source.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        # Of two mounts on one point the later one lies on top.
        if len(point) >= len(place) and Path(directory).is_relative_to(point):
            place, file_system = point, types[0]
    if file_system not in SHARED_FILE_SYSTEMS:
        return None
    return f"{place} is a shared file system ({file_system}), on which SQLite's log cannot work"


def prepare(data: Path) -> Path:
    """Make the directory, for its owner alone, if it is not there; returns it with links resolved. PlaceError where it
    cannot hold a history."""
    try:
        data = data.resolve()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = data.stat()
    except OSError as error:
        raise PlaceError(f"data={data}: expected a directory ({error})") from None
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        mountinfo = ""
    reason = refused(data, mountinfo)
    if reason is not None:
        raise PlaceError(f"data={data}: {reason}; expected a directory on a disk of this host")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(status.st_mode)
        raise PlaceError(f"data={data}: others may write to it (mode {mode:o}); expected at most 755")
    for path in (data, data / FILE_NAME):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise PlaceError(f"data={data}: {path} cannot be written; expected to own it")
    return data


def lock(data: Path) -> int:
    """Take the directory for this process, as long as the returned file descriptor is open. StoreInUse where another
    has it."""
    path = data / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise PlaceError(f"data={data}: {error}; expected a directory to write in") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise StoreInUse(f"data={data}: a daemon uses it (process {holder}); expected one of its own") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
