"""What the holder of a key may do: pure rules, no files and no sockets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from rankd.quota import NO_QUOTA, Quota
from rankd_client.wire import DAEMON_RUN, WireError, full_run_name, heartbeat_topic, join_run, prefix_of, split_run

RIGHTS = ("push", "subscribe", "admin")
DEFAULT_RIGHTS = frozenset({"push", "subscribe"})
STREAM_KINDS = ("alert", "measurement")


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights of one key, within its namespace ("" is the common one). `admin` is every right in every namespace.

    `public_key`: 40 characters of Z85; "" for who needs none.
    """

    name: str
    public_key: str = ""
    namespace: str = ""
    rights: frozenset[str] = DEFAULT_RIGHTS
    quota: Quota = field(default=NO_QUOTA)

    @property
    def user_id(self) -> str:
        """What connections made with this key carry. It holds the key as well as its name, so that a connection of a
        revoked key is not taken for one of a new key of the same name."""
        return f"{self.name}:{hashlib.sha256(self.public_key.encode()).hexdigest()[:16]}"

    def may(self, right: str) -> bool:
        """Whether this grant has `right`: push, subscribe or admin."""
        return right in self.rights or "admin" in self.rights

    def full_run(self, run: str) -> str:
        """The full name of what its holder calls `run`. A full name passes if it is of its namespace, or for an admin.

        Raises WireError: not_allowed, or bad_name for what no run can be called.
        """
        if not run.startswith("@"):
            return join_run(self.namespace, run)
        if self.may("admin") or split_run(run)[0] == self.namespace:
            return full_run_name("run", run)
        raise WireError("not_allowed", "this key may not use the names of another namespace")

    def pushed_run(self, run: str) -> str:
        """The full name of the run that its holder pushes as `run`. Raises WireError as full_run, and not_allowed
        where it may not push."""
        if not self.may("push"):
            raise WireError("not_allowed", "this key may not push")
        if run == DAEMON_RUN:
            raise WireError("bad_name", f"{DAEMON_RUN} is the daemon's own run")
        return self.full_run(run)

    def covers(self, run: str) -> bool:
        """Whether its holder may read the run of this full name. Raises WireError (bad_name) if it is none."""
        return self.may("admin") or (self.may("subscribe") and split_run(run)[0] == self.namespace)

    def covers_topic(self, prefix: bytes) -> bool:
        """Whether its holder may subscribe to the topics that begin with `prefix`: those of its namespace, whole
        (`alert@ns NUL`) or a run's, and its heartbeats. Shorter prefixes reach into other namespaces: for admins."""
        if self.may("admin"):
            return True
        own = tuple(prefix_of(kind, self.namespace) for kind in STREAM_KINDS)
        return self.may("subscribe") and (prefix == heartbeat_topic(self.namespace) or prefix.startswith(own))


OWNER = Grant("@owner", rights=frozenset(RIGHTS))
"""Of connections without a key: over ipc, where the peer's user id was looked at, or over TCP where there are no keys.
Its name is one that no key can have."""
