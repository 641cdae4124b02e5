"""The end of an outlet: what nobody has then."""

from __future__ import annotations

from rankd_client.console import say
from rankd_client.outbox import Outbox
from rankd_client.outlet import Outlet


def end(link: Outlet, outbox: Outbox, timeout_seconds: float) -> tuple[int, int]:
    """Have `link` let go what is pending, within `timeout_seconds`. Returns of how many layers no daemon took the
    newest snapshot, and how many measurements none took. What one has taken and not recorded yet counts as taken: it
    will."""
    was_connected, num_before = link.connected, outbox.num_unsent
    link.stop(timeout_seconds)
    link.join(timeout_seconds + 0.5)
    if not was_connected and outbox.num_unsent == num_before:  # nor has one come since
        outbox.rewind()  # what one had taken that is gone went with it
    num_unsent = outbox.reports.num_unsent
    return outbox.num_unsent - num_unsent, num_unsent + len(outbox.reports.under_way())


def tell(num_layers: int, num_measurements: int, num_dropped: int) -> None:
    """One line on stderr, if there is anything to tell. `num_dropped` snapshots had to make room before."""
    left = [f"the newest snapshots of {_count(num_layers, 'layer')}"] if num_layers else []
    left += [_count(num_measurements, "measurement")] if num_measurements else []
    dropped = f"; {num_dropped} had been dropped for want of memory" if num_dropped else ""
    if left:
        say(f"closed: no daemon took {', and '.join(left)}{dropped}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
