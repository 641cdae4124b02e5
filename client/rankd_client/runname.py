"""What a run is called where nobody says: the same in all processes of a job, and as far as can be had, in no other."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from rankd_client.plan import process_world

JOB_VARIABLES = (
    ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    ("SLURM_JOB_ID",),
    ("PBS_JOBID",),
    ("LSB_JOBID", "LSB_JOBINDEX"),
    ("FLUX_JOB_ID",),
    ("JOB_ID", "SGE_TASK_ID"),  # both, because other programs set a JOB_ID too
)
"""What batch systems call a job, and its place in an array of jobs."""

_NO_ARRAY = {"LSB_JOBINDEX": "0", "SGE_TASK_ID": "undefined"}
_HERE = ("localhost", "127.0.0.1", "::1")


def default_run() -> str:
    """A readable name. In a batch job script and job, the same in all of its processes and when it is requeued; in a
    job of several processes that a launcher started, what these share; else one that no other run has: script, host,
    process and time."""
    script = (Path(sys.argv[0]).stem if sys.argv and sys.argv[0] not in ("", "-c") else "python")[:60]
    if job := _job_id() or (_launch() if process_world()[1] > 1 else ""):
        return f"{script}-{job}"
    return f"{script}-{socket.gethostname()[:60]}-{os.getpid()}-{time.strftime('%Y%m%dT%H%M%S')}"


def _job_id() -> str:
    """`123` or `123_4`, as the batch system's own tools say; "" outside of one."""
    for names in JOB_VARIABLES:
        if all(os.environ.get(name) for name in names):
            values = [os.environ[name] for name in names if os.environ[name] != _NO_ARRAY.get(name)]
            return "_".join(map(_plain, values))
    return ""


def _launch() -> str:
    """Of processes on one host: the host, and the process that started them all, with its time. Of others: the id that
    the launcher was given, and where they meet, which another job may have too."""
    own, meeting = os.environ.get("TORCHELASTIC_RUN_ID", "none"), os.environ.get("MASTER_ADDR", "")
    on_one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE", "") or meeting in ("", *_HERE)
    if on_one_host:
        parent = os.getppid()
        return f"{_plain(socket.gethostname())}-{parent}{_started(parent)}"
    given = [own] if own != "none" else []
    return "-".join(map(_plain, (*given, meeting, os.environ.get("MASTER_PORT", ""))))


def _started(pid: int) -> str:
    """When a process began, in ticks since the system did: process ids come again."""
    with suppress(OSError, IndexError):
        return f"-{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return ""


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._\[\]-]", "", text)[:60]
