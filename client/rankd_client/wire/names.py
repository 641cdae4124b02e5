"""Names of runs: a peer's own, and the full one that says in whose namespace it is."""

from __future__ import annotations

import re
from typing import Any

from rankd_client.wire import fields as f
from rankd_client.wire.errors import WireError
from rankd_client.wire.limits import MAX_RUN_NAME_BYTES

NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

DAEMON_RUN = "@daemon"
"""The run of the daemon's own alerts, in no namespace; hence "daemon" is none."""


def is_namespace(name: str) -> bool:
    """Whether a key can have this namespace (the common one has the name "", which is none of these)."""
    return NAMESPACE.fullmatch(name) is not None and name != DAEMON_RUN[1:]


_OWN = f.name(MAX_RUN_NAME_BYTES)


def full_run_name(key: str, value: Any) -> str:
    """`RUN`, which does not begin with "@"; `@NAMESPACE/RUN`; or `@daemon`. WireError bad_name for anything else."""
    if value != DAEMON_RUN:
        split_run(value, key)
    return str(value)


def split_run(full: Any, key: str = "run") -> tuple[str, str]:
    """(namespace, run) of a full name; "" is the common namespace, where `@daemon` is too. WireError bad_name."""
    if full == DAEMON_RUN:
        return "", DAEMON_RUN
    namespace, run = "", full
    if isinstance(full, str) and full.startswith("@"):
        namespace, slash, run = full[1:].partition("/")
        if not slash or not is_namespace(namespace):
            raise WireError("bad_name", f"{key}={f.show(full)}; expected @NAMESPACE/RUN, or a name without @ in front")
    if isinstance(run, str) and run.startswith("@"):
        raise WireError("bad_name", f"{key}={f.show(full)}; expected a run whose name does not begin with @")
    return namespace, str(_OWN(key, run))


def join_run(namespace: str, run: str) -> str:
    """The full name of `run` in `namespace`. WireError bad_name where there can be none."""
    full = f"@{namespace}/{run}" if namespace else run
    if namespace and split_run(full) != (namespace, run):
        raise WireError("bad_name", f"namespace={f.show(namespace)}; expected one without a slash")
    return full_run_name("run", full)
