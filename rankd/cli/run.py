"""`rankd run -- COMMAND`: one command with a daemon of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Annotated, Any

import typer

from rankd.cli.common import PROBLEM, leave
from rankd.cli.processes import AlertListener, private_daemon


class _Printer(AlertListener):
    def show(self, alert: Mapping[str, Any]) -> None:
        from rankd_client.text import alert_line

        print(f"rankd: {alert_line(alert)}", file=sys.stderr, flush=True)


def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, behind --.")],
) -> None:
    """Start a private daemon, run COMMAND with RANKD_URL set to it, show its alerts; exits as COMMAND does."""
    with private_daemon(listener=_Printer()) as url:
        # The printer shows every alert; the client's own line about it would be the second.
        environment = {**os.environ, "RANKD_URL": url, "RANKD_ECHO": "0"}
        try:
            code = _run(command, environment)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            leave(f"cannot run {command[0]!r}: {error.strerror}", 127 if missing else PROBLEM)
    raise typer.Exit(code)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """The command's exit code, in the shell's way for signals. SIGTERM and SIGINT to us are the command's."""
    child = subprocess.Popen(command, env=environment)

    def forward(signum: int, frame: FrameType | None) -> None:
        child.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, forward)
    # A terminal's Ctrl-C reaches the child by itself; any other SIGINT is for us to pass on.
    signal.signal(signal.SIGINT, (lambda *_: None) if sys.stdin is not None and sys.stdin.isatty() else forward)
    code = child.wait()
    return 128 - code if code < 0 else code
