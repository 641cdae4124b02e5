"""What to look at when a rule fires: advice on weights, and where another role needs its own."""

from __future__ import annotations

ADVICE = {
    "effective_rank_drop": "Look at what changed shortly before this step: learning rate, weight decay, precision or "
    "data; and at this layer's loss and gradient norm. A falling rank is not harm by itself.",
    "spectral_norm_growth": "Look at the learning rate, clipping and weight decay of this layer, and at the loss. "
    "A growing norm is not harm by itself.",
    "ema_drop": "Stable rank falls in most healthy runs too: compare with other layers and with effective_rank.",
    "nonfinite": "Look at the loss, gradient scaling and learning rate of the steps before; the last good checkpoint "
    "is older than this step.",
    "zero": "Check whether the layer is meant to be pruned, frozen or zero-initialised, and its weight decay.",
    "baseline_reset": "Nothing to do if the run was restarted or the layer rebuilt on purpose.",
}

ROLE_ADVICE = {
    ("feature", "effective_rank_drop"): "Look at what keeps the features apart (stop-gradient, variance and covariance "
    "terms, negatives, temperature, batch size), at dead units, and at what changed shortly before this step.",
    ("feature", "zero"): "Look for dead units; a branch that is zero-initialised begins so.",
    ("gradient", "nonfinite"): "Loss scaling leaves out steps with such a gradient: look at it if it stays.",
    ("gradient", "zero"): "Nothing to do if the layer is frozen.",
    ("update", "zero"): "Nothing to do if the layer is frozen.",
}


def advice_on(rule: str, role: str) -> str:
    """One or more sentences; empty where there is nothing to say."""
    return ROLE_ADVICE.get((role, rule)) or ADVICE.get(rule, "")
