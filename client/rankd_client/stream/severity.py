"""Which alerts are severe enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SEVERITIES = ("info", "warning", "critical")

MAX_BEGUN = 10_000
"""Alerts that were shown and have not ended; the oldest are forgotten. Far more than are firing at once."""

TOKEN_BYTES = 8


def alert_token(alert: Mapping[str, Any]) -> str:
    """Stands for an alert from its firing to its end; of a fixed size, however long its id."""
    name = json.dumps([alert.get("run"), alert.get("alert_id")], default=str).encode()
    return hashlib.blake2b(name, digest_size=TOKEN_BYTES).hexdigest()


class Begun:
    """The alerts that were shown firing and not ended, in the order in which they fired."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._tokens = dict.fromkeys(tokens)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __contains__(self, alert: Mapping[str, Any]) -> bool:
        return alert_token(alert) in self._tokens

    def note(self, alert: Mapping[str, Any]) -> None:
        """This state of the alert was shown."""
        token = alert_token(alert)
        self._tokens.pop(token, None)
        if alert.get("state") == "firing":
            self._tokens[token] = None
            if len(self._tokens) > MAX_BEGUN:
                del self._tokens[next(iter(self._tokens))]


class SeverityFilter:
    """Those of severity `least` or worse (None: all), and whatever follows, above all the end, whose severity may be
    lower, of each that was shown firing."""

    def __init__(self, least: str | None = None) -> None:
        """Raises ValueError."""
        self._enough = SEVERITIES[SEVERITIES.index(check_severity(least)) :]
        self._all = least is None
        self.begun = Begun()

    def __call__(self, alert: Mapping[str, Any]) -> bool:
        if self._all:
            return True
        shown = alert.get("severity") in self._enough or alert in self.begun
        if shown:
            self.begun.note(alert)
        return shown


def check_severity(severity: object) -> str:
    """One of SEVERITIES, None standing for the least. Raises ValueError."""
    if severity is None:
        return SEVERITIES[0]
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r}; expected one of {', '.join(SEVERITIES)}")
    return str(severity)
