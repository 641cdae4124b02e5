"""Joining a Ray cluster, or starting one here. Ray is imported when that is asked for, in the driver alone."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankd.config import RAY_URL

ANSWER_SECONDS = 5.0
"""For a TCP connection to whom an address names."""

NO_ANSWER = f"{{}} does not answer: nobody takes a connection there within {ANSWER_SECONDS:.0f} s"

LOOPBACK = "127.0.0.1"

AUTO, LOCAL = "auto", "local"
"""Values of Ray's own for RAY_ADDRESS: the cluster that runs on this host, a private one."""

CLIENT_PORT = "it has to be the port of Ray's client server, 10001 unless told otherwise, not that of GCS, 6379"


class ClusterError(Exception):
    """There is no cluster to be had; the words say why."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cluster has: nodes that are there, cores and GPUs of them all, the smallest object store in bytes."""

    num_nodes: int
    num_cores: int
    num_gpus: int
    store_bytes: int


@contextlib.contextmanager
def joined(address: str, num_cores: int, num_gpus: int, store_bytes: int, directory: str) -> Iterator[str]:
    """A connection to Ray, and to whom: the address ("ray://HOST:PORT", "HOST:PORT", AUTO, LOCAL), else the one that
    RAY_ADDRESS names, else the cluster that runs on this host; where there is none, and `num_cores` is not 0, a private
    one of so many cores, GPUs and bytes, in `directory`, which is gone afterwards. Raises ClusterError."""
    ray = _imported()
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address in (AUTO, LOCAL):
        os.environ.pop("RAY_ADDRESS", None)  # we say which one that is
    running = "" if address == LOCAL else _running_here()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    with contextlib.ExitStack() as cleanup:
        if found := running if address in ("", AUTO, LOCAL) else address:
            cleanup.callback(ray.shutdown)
            _join(found, AUTO if found == running else found, options)
        elif num_cores and address != AUTO:
            found = LOCAL
            options |= {"num_cpus": num_cores, "num_gpus": num_gpus, "object_store_memory": store_bytes}
            cleanup.callback(shutil.rmtree, Path(directory).parent, ignore_errors=True)  # the daemon may be gone
            cleanup.callback(ray.shutdown)
            _start(directory, options)
        else:
            raise ClusterError("no Ray cluster runs on this host")
        yield found


def _imported() -> Any:
    try:
        import ray
    except Exception as error:  # whatever a broken installation raises
        raise ClusterError(f"ray cannot be imported: {error}") from error
    return ray


def _running_here() -> str:
    """The address of the cluster that `ray start` has left on this host, "" where it is not there any more. Not those
    that Ray finds by looking at all processes: they may be another daemon's private ones."""
    from ray._private.utils import read_ray_address

    address: str = read_ray_address(None) or ""
    return address if address and answers(address) else ""


def _join(found: str, asked: str, options: dict[str, Any]) -> None:
    """`asked`: for one that was found, Ray takes the token that this user has."""
    import ray
    from ray._private import services

    address = found.removeprefix(RAY_URL)
    if not answers(address):
        raise ClusterError(NO_ANSWER.format(found))
    host, _, port = address.rpartition(":")
    if host == LOOPBACK and not answers(f"{services.resolve_ip_for_localhost(host)}:{port}"):
        services.resolve_ip_for_localhost = lambda host: host  # it is on loopback alone
    try:
        ray.init(asked, **options)
    except Exception as error:
        hint = f" ({CLIENT_PORT})" if found.startswith(RAY_URL) else ""
        raise ClusterError(f"{found} cannot be joined{hint}: {error}") from error


def answers(address: str) -> bool:
    """Whether somebody takes connections there. Ray itself would try for half a minute and more."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _start(directory: str, options: dict[str, Any]) -> None:
    """In a directory of its own, so that nobody else's `ray.init()` finds it; on loopback alone, for which Ray would
    take this host's address: whoever reaches that would reach its ports. With a token of its own,
    unless the environment has one."""
    import ray
    from ray._private import services
    from ray._raylet import Config  # type: ignore[attr-defined]

    services.resolve_ip_for_localhost = lambda host: host
    if not any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray leaves one in ~/.ray that all may read
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    Config.initialize("")  # the environment was read when Ray was imported
    try:
        ray.init(LOCAL, include_dashboard=False, _temp_dir=directory, _node_ip_address=LOOPBACK, **options)
    except Exception as error:
        raise ClusterError(f"Ray does not start: {error}") from error
    (node,) = _nodes()
    if node["NodeManagerAddress"] != LOOPBACK:
        raise ClusterError(
            f"this version of Ray, {ray.__version__}, would listen beyond loopback; start it by `ray start`"
        )


def resources() -> Resources:
    """As they are now; asks the cluster's head."""
    nodes = [node["Resources"] for node in _nodes() if node["Alive"]]
    total = {name: int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU")}
    store_bytes = min((int(node.get("object_store_memory", 0)) for node in nodes), default=0)
    return Resources(len(nodes), total["CPU"], total["GPU"], store_bytes)


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes
