"""The alert that says that trainers went without a word: one for a run, however many processes it is about. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rankd.records import Alert, State
from rankd.trainers.roll import Trainer, Trainers

RULE = "trainer_gone"

GRACE_SECONDS = 10.0

MAX_LISTED = 256
"""Processes named in an alert."""

ADVICE = (
    "Look at the job's log and exit code. A job that is started again under the same name goes on in this run, and "
    "ends this alert."
)


@dataclass(frozen=True, slots=True)
class _Raised:
    alert_id: str
    processes: frozenset[int]
    step: int | None


class Gone:
    """Who is missed is in the roll; this tells each change once. `origin`: this daemon's own; with the time it keeps
    ids from being used twice. `wall`: seconds since the Unix epoch. `grace_seconds`: a client whose connection broke is
    back within a second or two, and the processes of a job that is killed end one after the other; so long nothing is
    said."""

    def __init__(self, origin: str, wall: Callable[[], float], grace_seconds: float = GRACE_SECONDS) -> None:
        self._origin = origin
        self._wall = wall
        self._grace_seconds = grace_seconds
        self._raised: dict[str, _Raised] = {}
        self._num_raised = 0

    def restore(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Take over what a former process left firing: alert JSON, as the history has it. Whoever of these is heard of
        again ends it; that all trainers have to connect anew to this one is no news."""
        for body in alerts:
            if body.get("rule") != RULE or body.get("state") != "firing":
                continue
            listed = body.get("processes")
            processes = listed if isinstance(listed, list | tuple) else ()
            known = frozenset(process for process in processes if type(process) is int)
            step = body.get("step")
            self._raised[str(body["run"])] = _Raised(str(body["alert_id"]), known, step if type(step) is int else None)

    def look(self, trainers: Trainers, now: float) -> list[Alert]:
        """To be called about once a second, `now` in monotonic seconds."""
        left: dict[str, list[Trainer]] = {}
        for trainer in trainers.take_left():
            left.setdefault(trainer.run, []).append(trainer)
        missed: dict[str, list[Trainer]] = {}
        for trainer in trainers.gone():
            missed.setdefault(trainer.run, []).append(trainer)
        here = {run: [*trainers.of(run), *left.get(run, ())] for run in self._raised}
        alerts = [self._end(run) for run in list(self._raised) if self._is_over(run, missed.get(run, []), here[run])]
        for run, gone in missed.items():
            if run not in self._raised and any(now - (t.gone_at or now) >= self._grace_seconds for t in gone):
                alerts.append(self._raise(run, gone))
        return alerts

    def forget(self, run: str) -> None:
        self._raised.pop(run, None)

    def _is_over(self, run: str, missed: list[Trainer], here: list[Trainer]) -> bool:
        """Whether all that the alert is about are here again, or were in the meantime, or not to be expected any
        more."""
        if not here:
            return False
        world_size = max(trainer.world_size for trainer in here)
        present = {trainer.process_rank for trainer in here}
        expected = {process for process in self._raised[run].processes if process < world_size}
        still = {trainer.process_rank for trainer in missed}
        return not expected & still and expected <= present

    def _raise(self, run: str, gone: list[Trainer]) -> Alert:
        self._num_raised += 1
        key = json.dumps([run, self._origin, RULE, self._num_raised, self._wall()])
        steps = [trainer.newest_step for trainer in gone if trainer.newest_step is not None]
        listed = sorted({trainer.process_rank for trainer in gone})[:MAX_LISTED]
        raised = _Raised(
            hashlib.sha256(key.encode()).hexdigest()[:16], frozenset(listed), max(steps) if steps else None
        )
        self._raised[run] = raised
        return self._alert(run, raised, "firing", _message(gone, raised.step))

    def _end(self, run: str) -> Alert:
        raised = self._raised.pop(run)
        return self._alert(run, raised, "resolved", "over: back, or replaced")

    def _alert(self, run: str, raised: _Raised, state: State, message: str) -> Alert:
        return Alert(
            alert_id=raised.alert_id,
            run=run,
            layer=None,
            step=raised.step,
            severity="info",
            state=state,
            rule=RULE,
            metric=None,
            value=None,
            baseline=None,
            message=message,
            advice=ADVICE if state == "firing" else "",
            time=self._wall(),
            processes=tuple(sorted(raised.processes)),
        )


def _message(gone: list[Trainer], step: int | None) -> str:
    world_size = max(trainer.world_size for trainer in gone)
    why = gone[-1].why
    if world_size == 1:
        return f"the trainer is gone without saying bye ({why}); its last step was {step}"
    processes = sorted({trainer.process_rank for trainer in gone})
    names = ", ".join(map(str, processes[:16])) + (", …" if len(processes) > 16 else "")
    which = f"process {names} of {world_size} is" if len(processes) == 1 else f"processes {names} of {world_size} are"
    return f"{which} gone without saying bye ({why}); the last step was {step}"
