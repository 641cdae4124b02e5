"""How the detection rules do on labelled recordings of real training runs. Prints one JSON line per cadence and rule.

    python benchmarks/detection.py [--traces DIR]

DIR (default: benchmarks/traces) holds NAME.jsonl.gz files of measurements as JSON lines, and labels.json: run → class
(healthy, fault, must_not_claim), cause_step (a fault is switched on), event_step (the first of 3 checks with a
clearly lower rank than in the fault-free twin) and event_layers. A fault counts as found by a rule when the rule
raises a new alert on one of the event layers after the cause and had raised none in that run before it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rankd.judge import RunJudges
from rankd.records import Alert
from rankd.replay import read_file

TRACES = Path(__file__).parent / "traces"
RULES = ("effective_rank_drop", "spectral_norm_growth", "ema_drop", "nonfinite", "zero")


@dataclass(frozen=True)
class Replay:
    """One run judged: its alerts, and the steps at which it was measured."""

    label: Mapping[str, Any]
    alerts: list[Alert]
    steps: list[int]

    def raised(self, rules: Iterable[str]) -> list[Alert]:
        return [alert for alert in self.alerts if alert.state == "firing" and alert.rule in rules]


def replay(path: Path, label: Mapping[str, Any], every: int) -> Replay:
    """Judges a recording of which every `every`-th check is kept."""
    judges = RunJudges()
    alerts: list[Alert] = []
    steps: dict[int, int] = {}
    for measurement in read_file(path):
        assert measurement.step is not None
        if steps.setdefault(measurement.step, len(steps)) % every == 0:
            alerts += judges.update(measurement)
    return Replay(label, alerts, [step for step, check in steps.items() if check % every == 0])


def delay_in_checks(run: Replay, rules: Iterable[str]) -> int | None:
    """Checks from the event to the first alert on an event layer (below 0: before the event was certain). None where
    the fault was not found, or an alert stood before its cause."""
    cause, event = run.label["cause_step"], int(run.label["event_step"])
    raised = run.raised(rules)
    if any(alert.step is not None and alert.step < cause for alert in raised):
        return None
    found = next((alert.step for alert in raised if alert.layer in run.label["event_layers"]), None)
    if found is None:
        return None
    return sum(event < step <= found for step in run.steps) - sum(found < step <= event for step in run.steps)


def summarize(runs: list[Replay], every: int, name: str, rules: tuple[str, ...]) -> dict[str, Any]:
    of_class = {kind: [run for run in runs if run.label["class"] == kind] for kind in ("healthy", "fault")}
    claimed = [run for run in runs if run.label["class"] == "must_not_claim"]
    delays = [delay for run in of_class["fault"] if (delay := delay_in_checks(run, rules)) is not None]
    return {
        "every": every,
        "rule": name,
        "healthy_runs": len(of_class["healthy"]),
        "healthy_runs_alerted": sum(bool(run.raised(rules)) for run in of_class["healthy"]),
        "healthy_alerts": sum(len(run.raised(rules)) for run in of_class["healthy"]),
        "fault_runs": len(of_class["fault"]),
        "fault_runs_found": len(delays),
        "median_delay_checks": median(delays) if delays else None,
        "fault_alerts": sum(len(run.raised(rules)) for run in of_class["fault"]),
        "must_not_claim_runs": len(claimed),
        "must_not_claim_runs_alerted": sum(bool(run.raised(rules)) for run in claimed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="DIR")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 5, 20], help="keep every N-th check")
    parser.add_argument("--runs", action="store_true", help="print a line for each run as well")
    arguments = parser.parse_args()
    directory = arguments.traces
    if not directory.is_dir():
        parser.error(f"--traces is {directory}; expected a directory of labelled recordings")
    labels = json.loads((directory / "labels.json").read_text())
    for every in arguments.every:
        replays = {name: replay(directory / f"{name}.jsonl.gz", label, every) for name, label in labels.items()}
        runs = list(replays.values())
        print_row(summarize(runs, every, "alarms", ("effective_rank_drop", "spectral_norm_growth", "zero")))
        for rule in RULES:
            print_row(summarize(runs, every, rule, (rule,)))
        for name, run in replays.items() if arguments.runs else ():
            print_row({"every": every, "run": name, "class": run.label["class"], **details(run)})


def details(run: Replay) -> dict[str, Any]:
    """What each rule raised in one run: the number, and step and layer of the first."""
    row: dict[str, Any] = {}
    for rule in RULES:
        raised = run.raised((rule,))
        if raised:
            row[rule] = [len(raised), raised[0].step, raised[0].layer]
    if run.label["class"] == "fault":
        row["delay_checks"] = delay_in_checks(run, ("effective_rank_drop",))
    return row


def print_row(row: dict[str, Any]) -> None:
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in row.values())
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
