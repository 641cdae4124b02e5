"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was looked at, `text` says how it is; a problem has advice. `table`: lines for people."""

    check: str
    ok: bool
    text: str
    advice: str = ""
    table: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        status = "ok" if self.ok else "problem"
        return {"check": self.check, "status": status, "text": self.text, "advice": self.advice}


def ok(check: str, text: str) -> Finding:
    return Finding(check, True, text)


def problem(check: str, text: str, advice: str) -> Finding:
    return Finding(check, False, text, advice)
