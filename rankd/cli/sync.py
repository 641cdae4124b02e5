"""`rankd sync`: ship what trainers have spooled."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave, print_json
from rankd_client.text import escape

if TYPE_CHECKING:
    from rankd.sync import Tally
    from rankd_client.keys import Key

PROGRESS_SECONDS = 5.0


def sync(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="The spool.  \\[default: RANKD_SPOOL, else ~/.local/state/rankd/spool]"),
    ] = None,
    url: Annotated[str | None, typer.Option(envvar="RANKD_URL", help="The daemon's URL.")] = None,
    key: Annotated[Path | None, typer.Option(envvar="RANKD_KEY", help="A key file, for tcp://.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove sessions of which all was shipped.")] = False,
    wait: Annotated[float, typer.Option(help="Give up after this many seconds without a daemon.")] = 30.0,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a session, one a line.")] = False,
) -> None:
    """Ship what trainers in mode offline have spooled in DIR: each layer in its order, and once.

    It may be interrupted at any point, and while a trainer still writes: the next sync goes on from there.
    """
    root = _directory(directory)
    address, client_key = _daemon(url, key)
    with _alone(root), _words_of_the_link():
        tallies, is_well = _ship_all(root, address, client_key, max(0.0, wait), json_lines)
        _clear(tallies, delete)
    _say(_summary(root, tallies, delete))
    if not is_well or any(tally.num_damaged or tally.num_incomplete or tally.refused for tally in tallies):
        raise typer.Exit(PROBLEM)


def _ship_all(root: Path, address: str, key: Key | None, wait: float, json_lines: bool) -> tuple[list[Tally], bool]:
    """What became of each session, and whether all could be tried. The jobs of a run go one after the other."""
    from rankd.sync import Shipment, Unreachable, find_lives
    from rankd_client.spool.format import SpoolError

    tallies: list[Tally] = []
    try:
        lives, faults = find_lives(root)
    except OSError as error:
        leave(f"{escape(repr(str(root)))}: {error.strerror}", PROBLEM)
    for fault in faults:
        _say(str(fault))
    is_well, unfinished = not faults, set()
    for life in lives:
        if (run := life[0].run) in unfinished:  # its earlier steps first
            _say(f"{escape(run, 256)}: a job that was started again waits for what the one before it has left")
            is_well = False
            continue
        began = time.monotonic()
        try:
            shipment = Shipment(life, address, key, wait, _say, _Watch(run))
        except (SpoolError, OSError) as error:
            _say(str(error))
            is_well = False
            unfinished.add(run)
            continue
        tallies += shipment.tallies
        try:
            shipment.run()
        except Unreachable:
            _say(f"no daemon takes this in at {address}; what was not shipped goes with the next sync")
            return tallies, False
        except OSError as error:
            leave(f"{escape(repr(str(root)))}: what was shipped cannot be written down: {error.strerror}", PROBLEM)
        finally:
            if json_lines:
                seconds = round(time.monotonic() - began, 3)
                for tally in shipment.tallies:
                    print_json({**tally.to_json(), "seconds": seconds})
        if any(tally.num_left for tally in shipment.tallies):  # a process that lives may write the other parts yet
            unfinished.add(run)
    return tallies, is_well


class _Watch:
    """A line on stderr every few seconds."""

    def __init__(self, run: str) -> None:
        self._run = escape(run, 256)
        self._told_at = time.monotonic()

    def __call__(self, num_done: int, num_all: int) -> None:
        if (now := time.monotonic()) >= self._told_at + PROGRESS_SECONDS:
            self._told_at = now
            _say(f"{self._run}: {num_done} of {num_all} snapshots")


def _clear(tallies: list[Tally], delete: bool) -> None:
    """Sessions that are over are marked as such: a trainer that wants room takes theirs first."""
    from rankd_client.spool.room import SHIPPED

    for tally in tallies:
        if not tally.is_over:
            continue
        try:
            if delete:
                shutil.rmtree(tally.found.path)
            else:
                (tally.found.path / SHIPPED).touch(0o600)
        except OSError as error:
            _say(f"{escape(repr(str(tally.found.path)))}: {error.strerror}")


def _summary(root: Path, tallies: list[Tally], delete: bool) -> str:
    words = [f"{sum(tally.num_shipped for tally in tallies)} snapshots shipped"]
    counts = {
        "shipped before": sum(tally.num_before for tally in tallies),
        "superseded for want of room in the daemon": sum(tally.num_superseded for tally in tallies),
        "refused": sum(tally.refused.total() for tally in tallies),
        "damaged": sum(tally.num_damaged for tally in tallies),
        "parts of matrices whose other parts are not there": sum(tally.num_incomplete for tally in tallies),
        "left for later": sum(tally.num_left for tally in tallies),
    }
    words += [f"{number} {what}" for what, number in counts.items() if number]
    codes = sorted({code for tally in tallies for code in tally.refused})
    line = ", ".join(words) + (f" ({', '.join(map(escape, codes))})" if codes else "")
    num_over = sum(tally.is_over for tally in tallies)
    if num_over and not delete:
        line += f"; {num_over} of {len(tallies)} sessions in {escape(str(root), 500)} can go: --delete removes them"
    return line


def _directory(given: Path | None) -> Path:
    from rankd_client.config import spool_directory

    try:
        root = given if given is not None else spool_directory()
    except ValueError as error:
        leave(escape(str(error)), WRONG_USE)
    if not root.is_dir():
        leave(f"{escape(repr(str(root)))}: expected the directory of a spool (RANKD_SPOOL of the trainer)", WRONG_USE)
    if (root / "head").exists():
        leave(f"{escape(repr(str(root)))} is one session; expected the spool around it, {root.parent}", WRONG_USE)
    return root


def _daemon(url: str | None, key: Path | None) -> tuple[str, Key | None]:
    """The address of its push socket, and the key for it."""
    from rankd_client.endpoints import default_url, discovery_path, endpoints_of, is_discovery
    from rankd_client.keys import find_key

    url = url or default_url()
    try:
        if is_discovery(url):
            discovery_path(url)
            return url, find_key(key, url)
        address = endpoints_of(url).push
        return address, find_key(key, address)
    except ValueError as error:
        leave(escape(str(error)), WRONG_USE)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Leaves where another sync of this directory is at work."""
    path = root / "sync.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        leave(f"{escape(repr(str(path)))}: {error.strerror}; what was shipped is written beside the spool", PROBLEM)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            leave(f"another sync is at work here; its lock is {escape(repr(str(path)))}", PROBLEM)
        except OSError as error:
            _say(f"{escape(repr(str(path)))}: {error.strerror}: that no other sync is at work cannot be told")
        yield
    finally:
        os.close(lock)


@contextmanager
def _words_of_the_link() -> Iterator[None]:
    """What a link has to say to a trainer's log, on stderr and without training."""

    class Words(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _say(record.getMessage().removeprefix("rankd: ").replace("training goes on, ", ""))

    log, words = logging.getLogger("rankd_client"), Words(logging.WARNING)
    propagates, log.propagate = log.propagate, False
    log.addHandler(words)
    try:
        yield
    finally:
        log.removeHandler(words)
        log.propagate = propagates


def _say(line: str) -> None:
    print(f"rankd: {line}", file=sys.stderr, flush=True)
