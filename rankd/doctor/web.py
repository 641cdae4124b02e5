"""The daemon's HTTP side: what it says of its health."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from rankd.doctor.finding import Finding, ok, problem

PATIENCE_SECONDS = 3.0
MAX_BODY_BYTES = 1 << 20

# No proxy of the environment: this asks the daemon itself.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def check_http(base: str, token: str | None) -> Iterator[Finding]:
    """`base`: http://HOST:PORT. `token`: the keyring's, where it can be read."""
    status, health = _get(f"{base}/healthz", token)
    if status == 401:
        yield problem("http", f"{base} asks for a token", "name the daemon's keyring with --keys, or ask on its host")
        return
    if status != 200 or "status" not in health:
        yield problem("http", f"{base}/healthz: {health.get('error', status)}", "give --http HOST:PORT, or off")
        return
    yield ok("http", f"{base} answers, status {health['status']!r}, num_waiting={health.get('num_waiting')}")
    status, ready = _get(f"{base}/readyz", token)
    if status == 200:
        yield ok("ready", "pushes are taken and measured")
    else:
        yield problem("ready", f"not ready: {ready.get('reason', status)}", "look at the daemon's log and load")


def _get(url: str, token: str | None) -> tuple[int, dict[str, Any]]:
    """Status (0: no answer) and body."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with _opener.open(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, _parse(answer.read(MAX_BODY_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parse(error.read(MAX_BODY_BYTES))
    except (OSError, ValueError) as error:
        return 0, {"error": str(getattr(error, "reason", error))}


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
