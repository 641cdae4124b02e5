"""`rankd serve`: the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tomllib
import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave

if TYPE_CHECKING:
    from rankd.config import ServeConfig


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
        typer.Option(envvar="RANKD_DATA", help="Directory to append measurements and alerts to, as JSON lines."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(envvar="RANKD_DEVICE", help="auto, cpu or cuda:N.  \\[default: auto]")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(envvar="RANKD_EXECUTOR", help="threads or inline.  \\[default: threads]")
    ] = None,
    ema_severity: Annotated[
        str | None,
        typer.Option(help="Severity of the classic EMA rule: info, warning, critical or off.  \\[default: info]"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without keys.")] = False,
    config: Annotated[
        Path | None, typer.Option(envvar="RANKD_CONFIG", help="TOML file; the environment and flags go before it.")
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
        "insecure": insecure or None,
        "while_stdin": while_stdin or None,
    }
    from rankd.config import ConfigError, serve_config

    try:
        settings = {**_read_file(config), **{key: value for key, value in given.items() if value is not None}}
        if ema_severity is not None and isinstance(detect := settings.setdefault("detect", {}), dict):
            detect["ema"] = ema_severity
        checked = serve_config(settings)
        _log_to_stderr(log_level)
    except ConfigError as error:
        leave(str(error), WRONG_USE)
    _serve(checked)


def _serve(config: ServeConfig) -> None:
    from rankd.config import ConfigError
    from rankd.daemon import Daemon
    from rankd.sockets import BindError

    async def main() -> bool:
        daemon = Daemon(config)
        await daemon.run(announce=lambda ready: print(ready, flush=True))
        return daemon.drained

    try:
        drained = asyncio.run(main())
    except BindError as error:
        leave(str(error), PROBLEM)
    except ConfigError as error:
        leave(str(error), WRONG_USE)
    except Exception:  # ours; what a supervisor restarts must end
        traceback.print_exc()
        _exit_now(PROBLEM)
    if not drained:
        _exit_now(0)


def _exit_now(code: int) -> NoReturn:
    """Leave although a solve that no one can interrupt may still run in a worker thread: exit would wait for it."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _read_file(path: Path | None) -> dict[str, Any]:
    """The settings of a TOML file: the keys of [serve] at the top, and the tables [limits] and [detect]."""
    from rankd.config import ConfigError

    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config={str(path)!r}: expected a TOML file; {error}") from None
    serve_table = content.pop("serve", {})
    if not isinstance(serve_table, dict):
        raise ConfigError(f"config={str(path)!r}: serve={serve_table!r}; expected a table")
    unknown = sorted(set(content) - {"limits", "detect"})
    if unknown:
        raise ConfigError(f"config={str(path)!r}: no such table {unknown[0]!r}; expected serve, limits or detect")
    return {**serve_table, **content}


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
