"""The sessions in a spool, and which of them were one job."""

from __future__ import annotations

import fcntl
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rankd_client.spool.format import Origin, SpoolError, read_origin
from rankd_client.spool.room import files_of, sessions_of

UNLOCKED_SECONDS = 60.0
"""Where a disk knows no locks, a session that was written to so recently counts as being written."""

APART_SECONDS = 60.0
"""The processes of a job begin within this, by their clocks and that of the disk, of one another's writing."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one training process spooled. `live`: it may be writing still. `last_write`: seconds since 1970."""

    path: Path
    origin: Origin
    live: bool
    last_write: float

    @property
    def run(self) -> str:
        return self.origin.hello.run


Life = list[Found]
"""The sessions of one job from its start to its end; each of another process. The lowest process comes first."""


def find_lives(root: Path) -> tuple[list[Life], list[SpoolError]]:
    """All that is in the spool, the jobs of a run in their order, and what cannot be read of it. Raises OSError where
    `root` cannot be listed."""
    sessions, faults = [], []
    for path in map(Path, sessions_of(root)):
        if not re.fullmatch(r"[0-9a-f]{32}", path.name):
            continue  # not a session's, or not one yet
        try:
            origin = read_origin(path / "head")
            if origin.hello.session.hex() != path.name:
                raise SpoolError(path / "head", "it is of another session")
            sessions.append(_look(path, origin))
        except SpoolError as error:
            faults.append(error)
    return _lives(sessions), faults


def _look(path: Path, origin: Origin) -> Found:
    last_write = max((os.stat(kept.path).st_mtime for kept in files_of(str(path))), default=origin.started)  # noqa: PTH116
    return Found(path, origin, _is_live(path / "head", last_write), last_write)


def _is_live(head: Path, last_write: float) -> bool:
    descriptor = os.open(head, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return time.time() - last_write < UNLOCKED_SECONDS
    finally:
        os.close(descriptor)
    return False


def _lives(sessions: list[Found]) -> list[Life]:
    """A job that is started again under the same name has the same processes once more, or begins when the one before
    it has long written its last."""
    lives: list[Life] = []
    current: dict[str, Life] = {}
    for session in sorted(sessions, key=lambda found: (found.origin.started, found.path.name)):
        life = current.get(session.run)
        hello = session.origin.hello
        if (
            life is None
            or any(other.origin.hello.process_rank == hello.process_rank for other in life)
            or life[0].origin.hello.world_size != hello.world_size
            or all(not other.live and session.origin.started > other.last_write + APART_SECONDS for other in life)
        ):
            life = current[session.run] = []
            lives.append(life)
        life.append(session)
    for life in lives:
        life.sort(key=lambda found: found.origin.hello.process_rank)
    return lives
