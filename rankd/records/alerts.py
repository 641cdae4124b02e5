"""What was seen in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the least to the most urgent."""

State = Literal["firing", "resolved", "rebased"]

ALERT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """A change of state that a detector saw. A detector that saw none returns None, never a repeated Verdict.

    `value` and `baseline` are in the metric's own unit; `detail` says in words what was seen.
    """

    rule: str
    state: State
    severity: Severity
    metric: str | None
    value: float | None
    baseline: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A Verdict about a layer (or a whole run), as published. `stream_id`, `seq` and `time` come from record."""

    alert_id: str
    run: str
    layer: str | None
    step: int | None
    severity: Severity
    state: State
    rule: str
    metric: str | None
    value: float | None
    baseline: float | None
    message: str
    advice: str
    stream_id: str = ""
    seq: int = 0
    time: float = 0.0
    """Seconds since the Unix epoch."""
    processes: tuple[int, ...] = ()
    """Of an alert about processes of a job: their process_rank."""
    role: str = "weight"
    """Of the layer's tensors that it is about."""

    def published(self, stream_id: str, seq: int, time: float) -> Alert:
        return replace(self, stream_id=stream_id, seq=seq, time=time)

    def to_json(self) -> dict[str, Any]:
        about: dict[str, Any] = {"processes": list(self.processes)} if self.processes else {}
        about |= {"role": self.role} if self.role != "weight" else {}
        return {
            "schema": ALERT_SCHEMA,
            "alert_id": self.alert_id,
            "run": self.run,
            "layer": self.layer,
            "step": self.step,
            "severity": self.severity,
            "state": self.state,
            "rule": self.rule,
            "metric": self.metric,
            "value": self.value,
            "baseline": self.baseline,
            "message": self.message,
            "advice": self.advice,
            "stream_id": self.stream_id,
            "seq": self.seq,
            "time": self.time,
            **about,
        }
