"""What the history verbs of the command line say, as rows."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from _daemon import clean_environment

SQLITE_MAGIC = b"SQLite format 3\0"


def rows_of(*arguments: str) -> list[dict[str, Any]]:
    """The lines of `rankd ARGUMENTS… --json`."""
    command = [sys.executable, "-m", "rankd", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    if done.returncode not in (0, 1) or (done.returncode == 1 and not done.stdout):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def runs(data: Path) -> list[dict[str, Any]]:
    return rows_of("runs", "--data", str(data))


def measurements(data: Path, run: str) -> list[dict[str, Any]]:
    return rows_of("query", run, "--data", str(data))


def alerts(data: Path, run: str) -> list[dict[str, Any]]:
    """As they were published, in order."""
    return rows_of("query", run, "--alerts", "--data", str(data))


def replayed_alerts(data: Path, run: str) -> list[dict[str, Any]]:
    """What the recorded measurements give when they are judged again."""
    return rows_of("replay", run, "--data", str(data))


def num_damaged_files(data: Path) -> int:
    """Databases in `data` whose integrity check finds something, and 1 where there is none."""
    files = [path for path in data.iterdir() if path.is_file() and path.read_bytes()[:16] == SQLITE_MAGIC]
    checks = [_integrity(path) for path in files]
    return sum(check != "ok" for check in checks) if checks else 1


def _integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()
