"""The alerts that are on: also those whose event is no longer in the history."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankd.store.reader import Reader

_FIRING = """
SELECT r.name, f.n, coalesce(f.body, a.body) FROM firing f JOIN run r USING (run_id)
LEFT JOIN alert a ON a.run_id = f.run_id AND a.n = f.n
ORDER BY coalesce(a.time, json_extract(f.body, '$.time')), f.run_id, f.n
"""


def firing_alerts(reader: Reader) -> list[tuple[str, int, dict[str, Any]]]:
    """(run, n, alert) of all, in the order in which they were raised. Raises StoreError."""
    return [(name, n, json.loads(body)) for name, n, body in reader.rows(_FIRING)]
