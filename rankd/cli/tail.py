"""`rankd tail`: follow the alerts in a terminal, as JSON lines, or as input of a command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, discard_stdout, json_line, leave, print_json

if TYPE_CHECKING:
    from rankd_client.stream import Item


def tail(
    url: Annotated[str | None, typer.Option(envvar="RANKD_URL", help="The daemon's URL.")] = None,
    alerts: Annotated[str | None, typer.Option(help="Alerts address, instead of the URL's.")] = None,
    query: Annotated[str | None, typer.Option(help="Query address, instead of the URL's.")] = None,
    key: Annotated[Path | None, typer.Option(envvar="RANKD_KEY", help="A key file, for tcp://.")] = None,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Only layers like this glob; may be repeated.")] = None,
    severity: Annotated[str, typer.Option(help="Nothing below: info, warning or critical.")] = "info",
    measurements: Annotated[bool, typer.Option("--measurements", help="Measurements instead of alerts.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    since_last: Annotated[
        bool, typer.Option("--since-last", help="Go on where the last tail with these options ended.")
    ] = False,
    positions: Annotated[
        Path | None, typer.Option(help="Where --since-last keeps its place (and use it), instead of the default.")
    ] = None,
    exec_command: Annotated[
        str | None,
        typer.Option("--exec", help="Run this shell command for each alert, its JSON on stdin, until it exits with 0."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Leave after this many seconds without a line.")] = None,
) -> None:
    """Follow the alerts (first those that are firing now), until Ctrl-C."""
    from rankd_client import subscribe

    if exec_command is not None and (measurements or json_lines):
        leave("--exec: expected neither --measurements nor --json beside it", WRONG_USE)
    stream = "measurement" if measurements else "alert"
    show = _show(stream, json_lines, exec_command)
    try:
        if since_last and positions is None:
            positions = _default_positions(url, alerts, query, key, run, layer, stream, severity, exec_command)
        items = subscribe(
            *(url, run, layer, (stream,), timeout),
            severity=severity,
            alerts=alerts,
            query=query,
            key=key,
            since_last=positions,
        )
    except ValueError as error:
        leave(str(error), WRONG_USE)
    try:
        with items:
            for item in items:
                show(item)
                items.acknowledge()
    except KeyboardInterrupt:
        pass
    except PermissionError as error:  # SubscriptionError: nothing would ever come
        leave(str(error), PROBLEM)
    except BrokenPipeError:
        discard_stdout()


def _show(stream: str, json_lines: bool, command: str | None) -> Callable[[Item], None]:
    """What to do with an item."""
    from rankd_client.sink import deliver
    from rankd_client.text import alert_line, escape

    if command is not None:
        return lambda item: deliver(item, lambda alert: _execute(command, alert))
    if json_lines:
        return print_json
    if stream == "alert":
        return lambda item: print(alert_line(item), flush=True)
    return lambda item: print(escape(_measurement_line(item)), flush=True)


def _execute(command: str, alert: Item) -> None:
    """Raises CalledProcessError where the command does not take the alert."""
    subprocess.run(command, shell=True, input=json_line(alert) + "\n", text=True, check=True)


def _default_positions(
    url: str | None, alerts: str | None, query: str | None, key_file: Path | None, *shown: object
) -> Path:
    """A file in the user's state directory for this subscription alone: for whom, and what of it is `shown`. What one
    does not show is dealt with as far as its own file goes, and no further. Raises KeyFileError."""
    from rankd_client.endpoints import default_url
    from rankd_client.keys import find_key

    url = url or default_url()
    key = find_key(key_file, alerts or url)
    subscription = [url, alerts, query, key and key.public, *shown]
    name = hashlib.sha256(json.dumps(subscription).encode()).hexdigest()[:16]
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "rankd" / "tail" / f"{name}.json"


def _measurement_line(row: dict[str, Any]) -> str:
    values = [f"{key}={row.get(key)}" for key in ("stable_rank", "effective_rank", "spectral_norm")]
    return " ".join([str(row.get("run")), f"step {row.get('step')}", f"{row.get('layer')}:", *values])
