"""`rankd serve`: the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave
from rankd.cli.settings import find_file, find_keys, read_file

if TYPE_CHECKING:
    from rankd.config import ServeConfig

log = logging.getLogger("rankd.serve")


class _LogFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER message`, time in UTC; the messages are key=value pairs behind a few words."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def serve(
    url: Annotated[
        str | None, typer.Option(envvar="RANKD_URL", help="ipc://DIR or tcp://HOST:PORT, for all three sockets.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Address that takes pushes, instead of the URL's.")] = None,
    alerts: Annotated[str | None, typer.Option(help="Address that publishes alerts, instead of the URL's.")] = None,
    query: Annotated[str | None, typer.Option(help="Address that answers queries, instead of the URL's.")] = None,
    http: Annotated[
        str | None,
        typer.Option(envvar="RANKD_HTTP", help='HOST:PORT of /healthz, or "off".  \\[default: 127.0.0.1:7780]'),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="RANKD_DATA", help="Directory of the history, on a disk of this host."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            envvar="RANKD_DEVICE",
            help="auto, cpu, cuda (all GPUs), or cuda:N, several with commas between.  \\[default: auto]",
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            envvar="RANKD_EXECUTOR",
            help="auto, threads, processes, inline, ray or ray://HOST:PORT.  \\[default: auto]",
        ),
    ] = None,
    tier: Annotated[
        str | None, typer.Option(help="What is measured: norms, estimate, exact or auto.  \\[default: auto]")
    ] = None,
    ema_severity: Annotated[
        str | None,
        typer.Option(help="Severity of the classic EMA rule: info, warning, critical or off.  \\[default: info]"),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(envvar="RANKD_KEYS", help="Directory of the keyring.  \\[default: ~/.config/rankd/keys]"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Ask nobody for a key or token, and listen beyond loopback even so.")
    ] = False,
    discovery: Annotated[
        Path | None, typer.Option(help="File that says where this daemon is; RANKD_URL=file://… reads it.")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="Host name in that file, instead of this host's own, for 0.0.0.0.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            envvar="RANKD_CONFIG",
            help='TOML file, or "off"; the environment and flags go before it.  '
            "\\[default: ./rankd.toml, else ~/.config/rankd/rankd.toml]",
        ),
    ] = None,
    while_stdin: Annotated[bool, typer.Option("--while-stdin", help="Stop when standard input ends.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the daemon: takes pushes, measures, publishes alerts, until SIGTERM or SIGINT."""
    given = {
        "url": url,
        "push": push,
        "alerts": alerts,
        "query": query,
        "http": http,
        "data": data,
        "device": device,
        "executor": executor,
        "keys": keys,
        "insecure": insecure or None,
        "discovery": discovery,
        "advertise": advertise,
        "while_stdin": while_stdin or None,
    }
    from rankd.config import ConfigError, serve_config

    try:
        _log_to_stderr(log_level)
        file = find_file(config, lambda words: log.warning("%s", words))
        settings = {**read_file(file), **{key: value for key, value in given.items() if value is not None}}
        for table, key, value in (("detect", "ema", ema_severity), ("measure", "tier", tier)):
            if value is not None and isinstance(content := settings.setdefault(table, {}), dict):
                content[key] = value
        checked = serve_config(find_keys(settings))
    except ConfigError as error:
        leave(str(error), WRONG_USE)
    log.info("settings config=%s", "off" if file is None else file.resolve())
    _serve(checked)


def _serve(config: ServeConfig) -> None:
    from rankd.config import ConfigError
    from rankd.daemon import Daemon
    from rankd.sockets import BindError
    from rankd.store.errors import StoreError
    from rankd.supervise import raise_open_files
    from rankd_client.keys import KeyFileError

    log.info("limits open_files=%d", raise_open_files())

    async def main() -> bool:
        try:
            with _leaving_when_told():
                daemon = Daemon(config)
        except KeyFileError as error:  # the keyring is the user's to mend
            raise ConfigError(str(error)) from None
        await daemon.run(announce=lambda ready: print(ready, flush=True))
        return daemon.drained

    try:
        drained = asyncio.run(main())
    except BindError as error:
        leave(str(error), PROBLEM)
    except StoreError as error:  # it may pass, and a supervisor tries again; begun anew, it would number from 1
        leave(f"data={str(config.data)!r}: the history cannot be opened: {error}", PROBLEM)
    except ConfigError as error:
        leave(str(error), WRONG_USE)
    except Exception:  # ours; what a supervisor restarts must end
        traceback.print_exc()
        _exit_now(PROBLEM)
    if not drained:
        _exit_now(0)


@contextlib.contextmanager
def _leaving_when_told() -> Iterator[None]:
    """SIGTERM and SIGINT before the daemon is there, which may take a minute (joining Ray): the event loop, busy with
    that, would heed none. Whatever is half built is let go of; a second signal does not disturb that."""
    signums = (signal.SIGTERM, signal.SIGINT)

    def leave_in_order(signum: int, frame: object) -> NoReturn:
        for each in signums:
            signal.signal(each, signal.SIG_IGN)
        log.info("stopping before it is ready signal=%s", signal.Signals(signum).name)
        raise SystemExit(0)

    before = {signum: signal.signal(signum, leave_in_order) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _exit_now(code: int) -> NoReturn:
    """Leave although a solve that no one can interrupt may still run in a worker thread: exit would wait for it."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _log_to_stderr(level: str) -> None:
    from rankd.config import ConfigError

    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"log_level={level!r}: expected debug, info, warning or error")
    handler = logging.StreamHandler(sys.stderr)
    formatter = _LogFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
