"""`rankd tail`: follow the alerts in a terminal, or as JSON lines."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rankd.cli.common import WRONG_USE, leave, print_json
from rankd.records import SEVERITIES


def tail(
    url: Annotated[str | None, typer.Option(envvar="RANKD_URL", help="The daemon's URL.")] = None,
    alerts: Annotated[str | None, typer.Option(help="Alerts address, instead of the URL's.")] = None,
    query: Annotated[str | None, typer.Option(help="Query address, instead of the URL's.")] = None,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Only layers like this glob; may be repeated.")] = None,
    severity: Annotated[str, typer.Option(help="Nothing below: info, warning or critical.")] = "info",
    measurements: Annotated[bool, typer.Option("--measurements", help="Measurements instead of alerts.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Leave after this many seconds without a line.")] = None,
) -> None:
    """Follow the alerts (first those that are firing now), until Ctrl-C."""
    from rankd_client import subscribe
    from rankd_client.text import alert_line, escape

    if severity not in SEVERITIES:
        leave(f"--severity {severity!r}: expected one of {', '.join(SEVERITIES)}", WRONG_USE)
    wanted = SEVERITIES[SEVERITIES.index(severity) :]
    stream = "measurement" if measurements else "alert"
    try:
        items = subscribe(url, run, layers=layer, streams=(stream,), timeout=timeout, alerts=alerts, query=query)
    except ValueError as error:
        leave(str(error), WRONG_USE)
    shown: set[object] = set()
    with items:
        try:
            for item in items:
                if stream == "alert" and not _concerns(item, wanted, shown):
                    continue
                if json_lines:
                    print_json(item)
                elif stream == "alert":
                    print(alert_line(item), flush=True)
                else:
                    print(escape(_measurement_line(item)), flush=True)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:  # `rankd tail | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _concerns(alert: dict[str, object], wanted: tuple[str, ...], shown: set[object]) -> bool:
    """Whether to show it: severe enough, or the end (whose severity may be lower) of an alert that was shown."""
    alert_id = alert.get("alert_id")
    if alert.get("state") == "firing" and alert.get("severity") in wanted:
        shown.add(alert_id)
        return True
    ended = alert_id in shown
    shown.discard(alert_id)
    return ended or alert.get("severity") in wanted


def _measurement_line(row: dict[str, object]) -> str:
    values = [f"{key}={row.get(key)}" for key in ("stable_rank", "effective_rank", "spectral_norm")]
    return " ".join([str(row.get("run")), f"step {row.get('step')}", f"{row.get('layer')}:", *values])
