"""Works and outcomes as plain values, for other processes: in msgpack, nothing that is unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from rankd.executors.solver import MeasureError, NotHereError, Outcome
from rankd.executors.work import Work
from rankd.parts import SplitRules
from rankd.records import Reading, Snapshot
from rankd.weights import Part, Settings

Array = npt.NDArray[np.uint8]

_SNAPSHOT_KEYS = tuple(item.name for item in fields(Snapshot) if item.name != "data")
_READING_KEYS = tuple(item.name for item in fields(Reading))


def describe(work: Work) -> tuple[dict[str, Any], list[Array]]:
    """`work` as plain values, and its bytes: the snapshot's and, where there is one, the partner's."""
    snapshots = [work.snapshot] if work.partner is None else [work.snapshot, work.partner]
    told = [{key: getattr(snapshot, key) for key in _SNAPSHOT_KEYS} for snapshot in snapshots]
    return {"tier": work.tier, "snapshots": told}, [snapshot.data for snapshot in snapshots]


def work_of(description: Mapping[str, Any], arrays: Sequence[Array]) -> Work:
    """What `describe` told."""
    snapshot, *partner = [
        Snapshot(data=data, **{**told, "shape": tuple(told["shape"])})
        for told, data in zip(description["snapshots"], arrays, strict=True)
    ]
    return Work(snapshot, description["tier"], partner[0] if partner else None)


def pack_outcome(outcome: Outcome) -> bytes:
    """What a Solver made of a work."""
    told: dict[str, Any]
    if isinstance(outcome, NotHereError):
        told = {"not_here": outcome.reason}
    elif isinstance(outcome, MeasureError):
        told = {"refused": str(outcome)}
    elif isinstance(outcome, Exception):
        told = {"error": f"{type(outcome).__name__}: {outcome}"}
    else:
        readings = [{key: getattr(part.reading, key) for key in _READING_KEYS} for part in outcome]
        told = {"parts": [(part.layer, part.shape, of) for part, of in zip(outcome, readings, strict=True)]}
    packed: bytes = msgpack.packb(told)
    return packed


def outcome_of(packed: bytes) -> Outcome:
    """What `pack_outcome` packed. A mistake of ours, whatever it was there, is a RuntimeError with its words."""
    told = msgpack.unpackb(packed)
    if "not_here" in told:
        return NotHereError(told["not_here"])
    if "refused" in told:
        return MeasureError(told["refused"])
    if "error" in told:
        return RuntimeError(f"in another process: {told['error']}")
    return [Part(layer, tuple(shape), _reading_of(reading)) for layer, shape, reading in told["parts"]]


def describe_settings(settings: Settings) -> dict[str, Any]:
    """As plain values."""
    rules = {glob: rule.text for glob, rule in settings.rules.rules}
    return {
        "tolerance": settings.tolerance,
        "reference": settings.reference,
        "rules": rules,
        "metrics": settings.metrics,
    }


def settings_from(told: Mapping[str, Any]) -> Settings:
    """What `describe_settings` told."""
    return Settings(told["tolerance"], told["reference"], SplitRules.parse(told["rules"]), tuple(told["metrics"]))


def _reading_of(told: dict[str, Any]) -> Reading:
    bars = {name: (low, high) for name, (low, high) in told["bars"].items()}
    return Reading(**{**told, "bars": bars})
