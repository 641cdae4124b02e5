"""A ROUTER as a stage meets it, with no gate in front: what the gate would not let through comes here all the same."""

from __future__ import annotations

import zmq
import zmq.asyncio

RECEIVE_HWM = 8


class Router:
    """`socket` is bound to `address` (ipc://…)."""

    def __init__(self, address: str, send_hwm: int) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
        self.socket.setsockopt(zmq.SNDHWM, send_hwm)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(address)

    def close(self) -> None:
        self.context.destroy(linger=0)
