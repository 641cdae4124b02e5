"""How the rules do on features, gradients and updates of small trainings. Prints one JSON line per role and rule.

    python benchmarks/roles.py [--seeds N] [--as-weights] [--keep DIR]

Trains each model of _roles_runs.py here, measures what it watches at every 5th step, and judges it as a daemon does, or
all of it under the rules of weights. `healthy_alerted`: (run, layer) pairs that a rule raised an alert for in a healthy
training, of `healthy`; `found`: trainings whose features collapse in which it did after that, of `collapses`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _roles_runs import Run, runs, train

from rankd.judge import DEFAULT_CONFIG, DetectConfig, RunJudges
from rankd.records import Alert, Measurement

AS_WEIGHTS = DetectConfig(
    judged_roles=("weight", "update", "gradient", "feature"),
    feature_effective_rank_drop_scales=DEFAULT_CONFIG.effective_rank_drop_scales,
)
RULES = ("effective_rank_drop", "spectral_norm_growth", "ema_drop", "nonfinite", "zero")


def measure(run: str, step: int, layer: str, role: str, tensor: torch.Tensor) -> Measurement:
    values = tensor.detach().reshape(tensor.shape[0], -1).double()
    row: dict[str, Any] = {"run": run, "step": step, "layer": layer, "role": role}
    row |= {"rows": values.shape[0], "cols": values.shape[1]}
    if not bool(torch.isfinite(values).all()):
        return Measurement.from_json(
            row | dict.fromkeys(("stable_rank", "effective_rank", "spectral_norm")) | {"finite": False}
        )
    sigma = torch.linalg.svdvals(values).numpy()
    if sigma[0] == 0:
        return Measurement.from_json(row | dict.fromkeys(("stable_rank", "effective_rank", "spectral_norm"), 0.0))
    share = sigma / sigma.sum()
    share = share[share > 0]
    row["effective_rank"] = float(np.exp(-(share * np.log(share)).sum()))
    row["stable_rank"] = float((sigma**2).sum() / sigma[0] ** 2)
    row["spectral_norm"] = float(sigma[0])
    return Measurement.from_json(row)


def judge(run: Run, keep: Path | None, config: Any) -> tuple[set[tuple[str, str]], list[Alert]]:
    """What was watched, and the alerts."""
    judges, watched, alerts, rows = RunJudges(config), set(), list[Alert](), []
    for step, tensors in train(run):
        for (layer, role), tensor in tensors.items():
            watched.add((layer, role))
            measurement = measure(run.name, step, layer, role, tensor)
            rows.append(measurement)
            alerts += judges.update(measurement)
    if keep is not None:
        lines = (json.dumps(row.to_json()) + "\n" for row in rows)
        (keep / f"{run.name}.jsonl").write_text("".join(lines))
    return watched, [alert for alert in alerts if alert.state == "firing"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write what was measured there, for `rankd replay`")
    parser.add_argument("--as-weights", action="store_true", help="judge every role by the rules of weights")
    parser.add_argument("--only", default="", metavar="TEXT", help="trainings with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    healthy: dict[str, int] = defaultdict(int)
    alerted: dict[tuple[str, str], int] = defaultdict(int)
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    num_collapses = 0
    for run in runs(arguments.seeds, arguments.only):
        watched, alerts = judge(run, arguments.keep, AS_WEIGHTS if arguments.as_weights else DEFAULT_CONFIG)
        if run.collapses is None:
            for _, role in watched:
                healthy[role] += 1
            for _, role, rule in {(alert.layer, alert.role, alert.rule) for alert in alerts}:
                alerted[role, rule] += 1
        else:
            num_collapses += 1
            for alert in alerts:
                if alert.step is not None and alert.step >= run.collapses:
                    found[alert.role, alert.rule].add(run.name)
        print(
            json.dumps({"run": run.name, "alerts": [[a.step, a.layer, a.role, a.rule] for a in alerts][:30]}),
            flush=True,
        )
    for role, count in healthy.items():
        for rule in RULES:
            row = {"role": role, "rule": rule, "healthy": count, "healthy_alerted": alerted[role, rule]}
            print(json.dumps(row | {"collapses": num_collapses, "found": len(found[role, rule])}), flush=True)


if __name__ == "__main__":
    main()
