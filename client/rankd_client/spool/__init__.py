"""RANKD_MODE=offline: snapshots go to files, which `rankd sync` ships to a daemon later.

An outlet of the client, as the link is one (outlet), what one process writes (session), the bytes of the files
(format), the budget that processes share (room), and what goes first when it is used up (thinning).
"""

from rankd_client.spool.outlet import Spool

__all__ = ["Spool"]
