"""`rankd demo`: a real training run with a collapse, here and now."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave, print_json
from rankd.cli.processes import AlertListener, private_daemon
from rankd.demo.run import MIN_STEPS, URGENT, Story, trainer_lines
from rankd_client.text import alert_line

EVERY_STEPS = 10


class _Teller(AlertListener):
    """Shows warnings, and how they ended, as they come. Info alerts are counted: healthy runs have some too."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def show(self, alert: Mapping[str, Any]) -> None:
        raised = {a["alert_id"] for a in self.alerts if a["severity"] in URGENT}
        if alert["alert_id"] not in raised:
            return
        if self.as_json:
            print_json(alert)
        else:
            _say(f"  ! {alert_line(alert)}")


def demo(
    healthy: Annotated[bool, typer.Option("--healthy", help="The same training without the fault.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print the warnings and a last summary as JSON.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, for a shorter or longer look.")] = None,
) -> None:
    """Train a small transformer, hurt one layer on the way, and see rankd name it. Exits with 0 only if it does."""
    if steps is not None and steps < MIN_STEPS:
        leave(f"--steps {steps}: expected at least {MIN_STEPS}, the warm-up (2400 show the fault)", WRONG_USE)
    story = Story(healthy, EVERY_STEPS)
    tell = (lambda _: None) if json_lines else _say
    tell("rankd demo: starting a daemon and a trainer (a small transformer on Python's own source code)")
    teller = _Teller(json_lines)
    with private_daemon(listener=teller) as url:
        try:
            for line in trainer_lines(url, EVERY_STEPS, healthy, steps):
                story.summary = line
                tell(_progress(line))
        except RuntimeError as error:
            leave(str(error), PROBLEM)
    story.alerts = teller.alerts
    closing = story.closing()
    if json_lines:
        print_json(closing)
    else:
        _say(_closing_words(closing))
    if not story.told_rightly:
        raise typer.Exit(PROBLEM)


def _progress(line: dict[str, Any]) -> str:
    if "change" in line:
        return f"  step {line['step']}: the fault: {line['cause_layer']}: {line['change']}"
    if "loss" in line:
        return f"  step {line['step']}: loss {line['loss']:.3f}"
    return "  training is over"


def _closing_words(closing: dict[str, Any]) -> str:
    lines = [
        "",
        f"layers watched    {closing['num_layers']}",
        f"pushes            {closing['num_pushes']}, {closing['wire_bytes'] / 1e6:.1f} MB",
        f"blocked in push   {closing['push_blocked_seconds']:.3f} s of {closing['train_seconds']:.1f} s training "
        f"({100 * closing['push_share']:.2f} %)",
        f"warnings          {closing['num_warnings']}, and {closing['num_info_alerts']} of severity info, not shown",
    ]
    if closing["cause_step"] is not None:
        lines += [
            f"cause             step {closing['cause_step']}, {closing['cause_layer']}",
            f"loss              {closing['loss_before_cause']} before the cause, {closing['loss_final']} at the end",
        ]
    if closing["first_alert_step"] is not None:
        delay = "" if closing["delay_checks"] is None else f", {closing['delay_checks']} checks after the cause"
        lines.append(f"first warning     step {closing['first_alert_step']}, {closing['first_alert_layer']}{delay}")
    verdict = {True: "as it should be", False: "NOT as it should be"}[closing["ok"]]
    return "\n".join([*lines, f"{verdict}: " + _verdict_words(closing)])


def _verdict_words(closing: dict[str, Any]) -> str:
    if closing["cause_step"] is None:
        return "a healthy run and no warning" if closing["ok"] else "a healthy run, and a warning"
    if closing["first_alert_step"] is None:
        return "a layer was hurt, and no warning came"
    return "the warning names the layer that was hurt" if closing["ok"] else "the warning names the wrong layer or step"


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
