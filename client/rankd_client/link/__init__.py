"""The connection to the daemon: loop (the thread and its states), flow (credit and chunks), dealer (the socket)."""

from rankd_client.link.loop import Link

__all__ = ["Link"]
