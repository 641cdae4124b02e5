"""What the detectors remember, brought up to date before measurements are deleted that they would be fed again."""

from __future__ import annotations

import sqlite3

from rankd.judge import LayerJudge, StateError
from rankd.store.rows import MEASUREMENTS_SINCE, measurement_of

MAX_FOLDED = 64
"""Layers of one transaction, some 100 ms where each remembers 10,000 readings: commits wait for it."""

_BEHIND = """
SELECT m.layer_id, min(m.n) AS first_n FROM measurement m JOIN judge j USING (layer_id)
WHERE m.run_id = ? AND m.n <= ? AND m.n > j.n GROUP BY m.layer_id ORDER BY first_n LIMIT ?
"""
_RECORDED = """
SELECT r.name, l.name, l.role, j.n, j.state FROM judge j JOIN layer l USING (layer_id) JOIN run r USING (run_id)
WHERE j.layer_id = ?
"""


def fold(connection: sqlite3.Connection, run_id: int, upto: int) -> int:
    """Have the recorded detectors of the run hold its measurements up to number `upto`, so that these may go; within
    the caller's transaction. Returns the number up to which they may: less than `upto` where more layers are behind
    than can be brought up to date at once."""
    behind = connection.execute(_BEHIND, (run_id, upto, MAX_FOLDED + 1)).fetchall()
    if len(behind) > MAX_FOLDED:
        upto = behind.pop()[1] - 1
    for layer_id, _ in behind:
        _fold_layer(connection, layer_id)
    return upto


def _fold_layer(connection: sqlite3.Connection, layer_id: int) -> None:
    """To the layer's newest row rather than to the last that goes: it need not be done again with the next slice."""
    run, layer, role, n, state = connection.execute(_RECORDED, (layer_id,)).fetchone()
    try:
        judge = LayerJudge.restored(run, layer, role, state)
    except StateError:  # of another version or damaged: the layer is judged anew, from what is there by then
        connection.execute("DELETE FROM judge WHERE layer_id = ?", (layer_id,))
        return
    for row in connection.execute(MEASUREMENTS_SINCE, (layer_id, n)).fetchall():
        n, measurement = measurement_of(run, row)
        judge.update(measurement)
    connection.execute("UPDATE judge SET n = ?, state = ? WHERE layer_id = ?", (n, judge.state(), layer_id))
