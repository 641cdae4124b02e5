"""What a running daemon measures, and whether it keeps up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankd.doctor.finding import Finding, ok, problem

LAG_SECONDS = 10.0
"""Less is forgotten before anyone has read it."""

OVER = 1.2
"""Of the wanted share: what the plan lets pass as chance, and a little."""

FEWER = "push fewer layers or more rarely (every_steps=, include=), give it a GPU (--device), or --tier norms"


def check_plan(plan: Mapping[str, Any]) -> Finding:
    """`plan`: as `rankd.plan.Planner.describe` tells it; what is not in it, or is no number, counts as 0."""
    layers = plan.get("layers")
    counts = [f"{n} {tier}" for tier, n in layers.items()] if isinstance(layers, Mapping) else []
    what = f"layers measured: {', '.join(counts) or 'none yet'}"
    if num_thinned := _number(plan, "num_thinned"):
        what += (
            f" ({num_thinned:g} of them not at every push, but once in {_number(plan, 'max_every'):g} at least; "
            "norms alone between)"
        )
    share, wanted = _number(plan, "predicted_share"), _number(plan, "max_share")
    lag, num_lagging = _number(plan, "lag_seconds"), _number(plan, "num_lagging")
    text = f"{what}; predicted share {share:.2f} of {wanted:.2f}, lag {lag:.1f} s"
    if num_lagging and lag > LAG_SECONDS:
        return problem("plan", f"{text}; {num_lagging:g} layers are pushed faster than they are measured", FEWER)
    if share > OVER * wanted:
        return problem("plan", f"{text}: the least that is measured takes more time than it may", FEWER)
    return ok("plan", text)


def _number(plan: Mapping[str, Any], key: str) -> float:
    value = plan.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
