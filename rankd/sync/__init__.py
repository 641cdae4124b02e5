"""Ships what trainers without a route to the daemon have spooled (rankd_client.spool), as their client would have.

What is in a directory, and which sessions belong together (found), what was dealt with already (progress), in which
order it goes (index), matrices out of the parts that processes wrote (join), and the way to the daemon (ship).
"""

from rankd.sync.found import Found, Life, find_lives
from rankd.sync.ship import Shipment, Tally, Unreachable

__all__ = ["Found", "Life", "Shipment", "Tally", "Unreachable", "find_lives"]
