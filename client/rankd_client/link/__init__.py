"""The connection to the daemon: loop (the thread and its states), flow (credit and chunks), dealer (the socket), living
(the end of the interpreter)."""

from rankd_client.link.loop import Link

__all__ = ["Link"]
