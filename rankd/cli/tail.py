"""`rankd tail`: follow the alerts in a terminal, or as JSON lines."""

from __future__ import annotations

from typing import Annotated

import typer

from rankd.cli.common import WRONG_USE, SeverityFilter, discard_stdout, leave, print_json


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

    concerns = SeverityFilter(severity)
    stream = "measurement" if measurements else "alert"
    try:
        items = subscribe(url, run, layers=layer, streams=(stream,), timeout=timeout, alerts=alerts, query=query)
    except ValueError as error:
        leave(str(error), WRONG_USE)
    with items:
        try:
            for item in items:
                if stream == "alert" and not concerns(item):
                    continue
                if json_lines:
                    print_json(item)
                elif stream == "alert":
                    print(alert_line(item), flush=True)
                else:
                    print(escape(_measurement_line(item)), flush=True)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            discard_stdout()


def _measurement_line(row: dict[str, object]) -> str:
    values = [f"{key}={row.get(key)}" for key in ("stable_rank", "effective_rank", "spectral_norm")]
    return " ".join([str(row.get("run")), f"step {row.get('step')}", f"{row.get('layer')}:", *values])
