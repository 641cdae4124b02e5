"""What is wrong with the daemon itself, as alerts of the run `@daemon`. Pure: clocks are arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rankd.records import Alert, Severity, State
from rankd_client.wire import DAEMON_RUN as DAEMON_RUN  # part of what this module is about

CLOCK_JUMP_SECONDS = 5.0
"""NTP corrects less than this without a jump; a clock that was set or a host that slept is beyond it."""

CLOCK_FAULT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Kind:
    severity: Severity
    advice: str
    lasts_seconds: float | None = None
    """Of what happens rather than goes on: it is over when it was not seen again for so long."""


KINDS: dict[str, Kind] = {
    "history": Kind(
        "critical",
        "Alerts go on without it, and are written when it answers again. Look at the disk's free space and health; "
        "`rankd doctor` checks the file.",
    ),
    "history_unread": Kind(
        "warning",
        "Layers that are heard of for the first time since the start begin anew, and subscribers that missed something "
        "wait. Look at the disk; `rankd doctor` checks the file.",
        60.0,
    ),
    "history_moved": Kind(
        "critical",
        "What was recorded before is not in the history any more. Nothing to do for the daemon; look at the disk, and "
        "at who removes files there.",
        3600.0,
    ),
    "history_log": Kind(
        "warning",
        "The disk fills up, and max_bytes does not count it. Find who has the file open (`fuser history.db`) and end "
        "what reads there; nothing is lost.",
    ),
    "device": Kind(
        "warning",
        "Measuring goes on, slower, with what is left. With --executor processes what failed is started again by "
        "itself: if it was for want of memory, give it more. Else restart the daemon to use that GPU again.",
    ),
    "ray": Kind(
        "warning",
        "Measuring goes on, slower, on this host's CPU, and the cluster is tried again every few minutes. `ray status` "
        "shows how it is.",
    ),
    "ray_worker": Kind(
        "warning", "Another one takes its place. Look at the GPUs of the cluster's nodes if it comes back.", 300.0
    ),
    "measure": Kind(
        "warning", "Layers that do not fit in memory are refused. Give the daemon more, or exclude them.", 300.0
    ),
    "open_files": Kind("critical", "New connections are refused. Raise the limit (`ulimit -n`, LimitNOFILE=)."),
    "clock": Kind("warning", "Times before and after do not compare. Nothing to do if it was set on purpose."),
    "stalled": Kind(
        "warning", "Something waits and nothing was measured for a minute: one huge layer, or a GPU that hangs."
    ),
}
"""Every fault there is; its alert's rule is `daemon_` and the name."""


@dataclass(frozen=True, slots=True)
class _Active:
    alert_id: str
    text: str
    since: float
    seen: float
    """When it was last said to be on, in monotonic seconds."""


class Faults:
    """Which faults are on. Each change gives the Alert to be recorded and published, layer and step null.

    origin: the stream's id or another that is this daemon's own; with the time it keeps ids from being used twice.
    wall: seconds since the Unix epoch. monotonic: seconds that no setting of the clock changes. For one thread.
    """

    def __init__(self, origin: str, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._origin = origin
        self._wall = wall
        self._monotonic = monotonic
        self._active: dict[str, _Active] = {}
        self._restored: set[str] = set()
        self._num_set: dict[str, int] = {}

    def set(self, name: str, text: str) -> Alert | None:
        """`name`, one of KINDS, is on. None where it is on already; what is listed then has the new text."""
        former = self._active.get(name)
        if former is not None:
            self._active[name] = _Active(former.alert_id, text, former.since, self._monotonic())
            self._restored.discard(name)
            return None
        count = self._num_set[name] = self._num_set.get(name, 0) + 1
        now = self._wall()
        key = json.dumps([DAEMON_RUN, self._origin, name, count, now])
        active = _Active(hashlib.sha256(key.encode()).hexdigest()[:16], text, now, self._monotonic())
        self._active[name] = active
        return self._alert(name, active, "firing", KINDS[name].severity, text)

    def clear(self, name: str) -> Alert | None:
        """`name` is over; None where it was not on."""
        active = self._active.pop(name, None)
        self._restored.discard(name)
        return None if active is None else self._alert(name, active, "resolved", "info", f"over: {active.text}")

    def follow(self, name: str, text: str | None) -> Alert | None:
        """Set with `text`, clear with None: for what is looked at again and again."""
        return self.clear(name) if text is None else self.set(name, text)

    def restore(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Take over what a former process left firing: alert JSON of DAEMON_RUN, as the history has it."""
        for body in alerts:
            name = str(body["rule"]).removeprefix("daemon_")
            if name in KINDS and body["state"] == "firing" and name not in self._active:
                since = float(body["time"] or 0.0)
                self._active[name] = _Active(str(body["alert_id"]), str(body["message"]), since, self._monotonic())
                self._restored.add(name)

    def settle(self) -> list[Alert]:
        """Ends what was restored and has not been set again: to be called when the daemon is up and has looked."""
        return [alert for name in sorted(self._restored) if (alert := self.clear(name)) is not None]

    def expire(self) -> list[Alert]:
        """Ends what happened and has not happened again for as long as its kind lasts: to be called now and then."""
        now = self._monotonic()
        over = []
        for name, active in self._active.items():
            lasts_seconds = KINDS[name].lasts_seconds
            if lasts_seconds is not None and now - active.seen >= lasts_seconds:
                over.append(name)
        return [alert for name in over if (alert := self.clear(name)) is not None]

    def listing(self) -> list[dict[str, Any]]:
        """The faults that are on, for people: name, severity, text, advice, since (seconds since the epoch)."""
        return [
            {
                "name": name,
                "severity": KINDS[name].severity,
                "text": active.text,
                "advice": KINDS[name].advice,
                "since": active.since,
            }
            for name, active in self._active.items()
        ]

    def __bool__(self) -> bool:
        return bool(self._active)

    def _alert(self, name: str, active: _Active, state: State, severity: Severity, text: str) -> Alert:
        return Alert(
            alert_id=active.alert_id,
            run=DAEMON_RUN,
            layer=None,
            step=None,
            severity=severity,
            state=state,
            rule=f"daemon_{name}",
            metric=None,
            value=None,
            baseline=None,
            message=text,
            advice=KINDS[name].advice if state == "firing" else "",
            time=self._wall(),
        )


class ClockWatch:
    """Sees the wall clock jump against the monotonic one. A drift, however long, is none."""

    def __init__(self, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()
        self._jumped_at = -CLOCK_FAULT_SECONDS
        self._text: str | None = None

    def check(self) -> str | None:
        """What was seen, for a minute after it; else None. To be called every few seconds."""
        now = self._monotonic()
        offset = self._wall() - now
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > CLOCK_JUMP_SECONDS:
            self._jumped_at = now
            self._text = f"the clock jumped by {jump:+.1f} s: it was set, or this host slept"
        elif now - self._jumped_at >= CLOCK_FAULT_SECONDS:
            self._text = None
        return self._text
