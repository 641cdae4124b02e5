"""The data that flows from stage to stage. Imports nothing of ours but itself, so that every stage may import it.

matrices.py: snapshots and their singular values; measured.py: readings, and measurements with their JSON row;
alerts.py: verdicts and alerts.
"""

from rankd.records.alerts import ALERT_SCHEMA, SEVERITIES, Alert, Severity, State, Verdict
from rankd.records.matrices import LayerStep, Snapshot, Spectrum
from rankd.records.measured import (
    CONTRACT_METRICS,
    METRIC_NAMES,
    REPORTED,
    TIERS,
    Measurement,
    Reading,
    Tier,
    unmeasured_keys,
)

__all__ = [
    "ALERT_SCHEMA",
    "CONTRACT_METRICS",
    "METRIC_NAMES",
    "REPORTED",
    "SEVERITIES",
    "TIERS",
    "Alert",
    "LayerStep",
    "Measurement",
    "Reading",
    "Severity",
    "Snapshot",
    "Spectrum",
    "State",
    "Tier",
    "Verdict",
    "unmeasured_keys",
]
