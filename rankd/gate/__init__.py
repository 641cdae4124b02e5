"""Between the network and libzmq: bounds what peers may send, and ends connections one by one.

libzmq bounds single frames but not messages, connections or subscriptions, and cannot end one connection
(docs/decisions/0006-the-gate.md).
"""

from rankd.gate.connection import Connection
from rankd.gate.gate import Gate
from rankd.gate.limits import ALERTS_LIMITS, QUERY_LIMITS, GateLimits, push_limits

__all__ = ["ALERTS_LIMITS", "QUERY_LIMITS", "Connection", "Gate", "GateLimits", "push_limits"]
