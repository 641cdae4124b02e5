"""Memory of clients on this host that the daemon reads itself (docs/protocol.md, Lent memory): listener (the arena
socket), lenders (who lends what, within which bounds), borrower (what is read of it, as chunks), blocks (one mapped
memfd)."""

from rankd.lent.borrower import Borrower
from rankd.lent.lenders import Lenders, Loan
from rankd.lent.listener import ArenaListener

__all__ = ["ArenaListener", "Borrower", "Lenders", "Loan"]
