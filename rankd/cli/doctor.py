"""`rankd doctor`: what is slow, unreachable or broken, and what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankd.cli.common import PROBLEM, print_json
from rankd.cli.settings import find_file, read_file

if TYPE_CHECKING:
    from rankd.doctor import Finding


def doctor(
    url: Annotated[str | None, typer.Option(envvar="RANKD_URL", help="The daemon's URL.")] = None,
    key: Annotated[Path | None, typer.Option(envvar="RANKD_KEY", help="Key file to ask it with.")] = None,
    http: Annotated[
        str | None, typer.Option(envvar="RANKD_HTTP", help='HOST:PORT of its /healthz; "off" to leave it out.')
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar="RANKD_DATA", help="Directory of the history.")] = None,
    keys: Annotated[Path | None, typer.Option(envvar="RANKD_KEYS", help="Directory of the keyring.")] = None,
    config: Annotated[str | None, typer.Option(envvar="RANKD_CONFIG", help='TOML file, or "off".')] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Look at the daemon, its history, its keys and this host; exits with 1 if anything is wrong. Changes nothing.

    With --data or --keys and no URL, no daemon is asked.
    """
    given = {"url": url, "http": http, "data": data, "keys": keys}
    num_problems = 0
    for finding in _findings({name: value for name, value in given.items() if value is not None}, key, config):
        num_problems += not finding.ok
        _show(finding, json_lines)
    if num_problems:
        raise typer.Exit(PROBLEM)


def _findings(given: dict[str, Any], key: Path | None, config: str | None) -> Iterator[Finding]:
    from rankd.config import ConfigError, ServeConfig, serve_config
    from rankd.doctor.daemon import check_daemon
    from rankd.doctor.finding import ok, problem
    from rankd.doctor.history import check_history
    from rankd.doctor.host import check_host
    from rankd.doctor.keys import check_keys
    from rankd_client.endpoints import default_url, is_discovery

    warnings: list[str] = []
    found: dict[str, Any] = {}
    settings = ServeConfig("ipc:///-", "ipc:///-", "ipc:///-")
    try:
        file = find_file(config, warnings.append)
        found = read_file(file)
        # Of what a daemon would be started with; where it listens is asked for elsewhere.
        listening = ("url", "push", "alerts", "query", "http", "discovery", "advertise")
        settings = serve_config({"url": "ipc:///-", **{k: v for k, v in found.items() if k not in listening}})
        yield ok("settings", "no file" if file is None else f"{file.resolve()} can be used")
    except ConfigError as error:
        yield problem("settings", str(error), "`rankd serve` does not start with it")
    for warning in warnings:
        yield problem("settings", warning, "make it yours alone, or name the file with --config")

    url = given.get("url") or found.get("url")
    if url or not {"data", "keys"} & set(given):
        url = str(url or default_url())
        yield from check_daemon(url, key)
        keyring = given.get("keys") or settings.keys
        yield from _check_http(given.get("http"), url if is_discovery(url) else None, keyring)
    yield from check_keys(given.get("keys") or settings.keys)
    if (data := given.get("data") or settings.data) is not None:
        yield from check_history(Path(data), settings.history.max_bytes)
    yield from check_host(settings.device)


def _check_http(http: str | None, discovery_url: str | None, keyring: Path | None) -> Iterator[Finding]:
    """Only where it was said where to ask: by name, or in a discovery file. The usual port may be another daemon's."""
    from rankd.auth import Keyring, default_directory
    from rankd.doctor.web import check_http
    from rankd_client.endpoints import EndpointError, discovery_fields, discovery_path
    from rankd_client.keys import KeyFileError

    base = f"http://{http}" if http else "off"
    if http is None and discovery_url is not None:
        with contextlib.suppress(EndpointError):  # told of by the check of the addresses
            base = str(discovery_fields(discovery_path(discovery_url)).get("http"))
    if not base.startswith("http://") or base == "http://off":
        return
    directory = keyring or default_directory()
    token = None
    with contextlib.suppress(KeyFileError, OSError):  # told of by the check of the keys
        if (directory / "http.token").exists():
            token = Keyring(directory).http_token()
    yield from check_http(base, token)


def _show(finding: Finding, json_lines: bool) -> None:
    from rankd_client.text import escape

    if json_lines:
        print_json(finding.to_json())
        return
    print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.check}: {escape(finding.text, 500)}")
    for line in finding.table:
        print(f"         {escape(line, 500)}")
    if finding.advice:
        print(f"         {escape(finding.advice, 500)}")
