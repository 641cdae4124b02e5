"""The connection to the daemon: loop (the thread), conversation (its states), handshake (versions), flow (credit, and
what is under way), lender (memory that the daemon reads), dealer (the socket)."""

from rankd_client.link.loop import Link

__all__ = ["Link"]
