"""Keys and what they allow: `Keyring` (files), `Authority` (who may do what at this moment), `Door` (a socket's)."""

from rankd.auth.authority import Authority, Door
from rankd.auth.grants import OWNER, RIGHTS, Grant
from rankd.auth.keyring import Keyring, default_directory

__all__ = ["OWNER", "RIGHTS", "Authority", "Door", "Grant", "Keyring", "default_directory"]
