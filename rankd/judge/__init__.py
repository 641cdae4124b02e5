"""Measurements → alerts: every rule of every layer. Pure, so that the daemon and a replay give the same alerts.

layer.py: the rules of one layer; advice.py: what to look at when one fires; parts.py: which parts the layer has;
runs.py: the rules of all layers; state.py: a layer's memory as bytes, for the history.
"""

from __future__ import annotations

from rankd.detectors import DEFAULT_CONFIG, DetectConfig
from rankd.judge.advice import ADVICE
from rankd.judge.layer import STATE_EVERY, LayerJudge
from rankd.judge.runs import Key, Recall, RunJudges, recall_judge
from rankd.judge.state import STATE_VERSION, StateError

__all__ = [
    "ADVICE",
    "DEFAULT_CONFIG",
    "STATE_EVERY",
    "STATE_VERSION",
    "DetectConfig",
    "Key",
    "LayerJudge",
    "Recall",
    "RunJudges",
    "StateError",
    "recall_judge",
]
