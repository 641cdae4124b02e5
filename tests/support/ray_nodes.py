"""A Ray cluster of several nodes on loopback, in a process of its own: Ray leaves warnings and threads in whoever
starts one. As a program it is that process, which ends with its standard input:

    python ray_nodes.py HOME NUM_NODES NUM_CORES NUM_GPUS STORE_MIB CLIENT_PORT
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"


class RayNodes:
    """`num_nodes` nodes of so many cores and GPUs each, the head among them. `environment`: for whoever joins."""

    def __init__(
        self,
        num_nodes: int,
        num_cores: int = 1,
        num_gpus: int = 0,
        store_mib: int = 128,
        client_port: int = 0,
        own_session: bool = True,
    ) -> None:
        """`own_session`: Ctrl-C is not for it; Linux then shares a busy machine's time out between it and us."""
        self._home = tempfile.TemporaryDirectory(prefix="rn")
        token = Path(self._home.name) / "token"
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RANKD_", "RAY_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        sizes = map(str, (num_nodes, num_cores, num_gpus, store_mib, client_port))
        command = [sys.executable, __file__, self._home.name, *sizes]
        log = Path(self._home.name) / "log"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**self.environment, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},  # there, loopback is not replaced
                start_new_session=own_session,
            )
        self.address = self._answer()
        assert self.address, log.read_text()
        self.environment["RAY_ADDRESS"] = self.address
        self.client_port = client_port

    def workers(self, at_work: bool = False) -> list[int]:
        """Process ids of our actors, or of those that are measuring."""
        name = "ray::Worker.measure" if at_work else "ray::Worker"
        return processes_with(self._home.name, title=name)

    def drivers(self) -> list[int]:
        """Process ids of those that have joined, or are about to."""
        return processes_with(self._home.name, title="rankd.executors.ray.driver")

    def stored_bytes(self) -> tuple[int, int]:
        """In the object stores of all nodes: what was put and is kept; and that with copies, and what is not removed
        yet, for which Ray takes a second."""
        kept, used = self._say("stored").split()
        return int(kept), int(used)

    def remove_node(self) -> None:
        """The one added last, as if its host had lost power."""
        assert self._say("remove") == "0"

    def add_node(self) -> None:
        """One more of the same size."""
        assert self._say("add") == "0"

    def stop_head(self) -> None:
        """SIGKILL to all of the head's processes."""
        assert self._say("behead") == "0"

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._home.cleanup()

    def _say(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def processes_with(text: str, title: str = "") -> list[int]:
    """Process ids of those whose command line has `title` in it, and that or their environment `text`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if title.encode() in command and text.encode() in command + (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def main() -> None:
    from ray._private import utils
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    from ray.cluster_utils import Cluster

    home, *sizes = sys.argv[1:]
    num_nodes, num_cores, num_gpus, store_mib, client_port = map(int, sizes)
    vars(utils)["write_ray_address"] = lambda *_: None  # nobody on this host is to find it by chance
    node: dict[str, Any] = {
        "num_cpus": num_cores,
        "num_gpus": num_gpus,
        "node_ip_address": LOOPBACK,
        "object_store_memory": store_mib << 20,
    }
    head = {**node, "include_dashboard": False, "temp_dir": home}
    if client_port:
        head["ray_client_server_port"] = client_port
    cluster = Cluster(initialize_head=True, head_node_args=head)
    others = [cluster.add_node(**node) for _ in range(num_nodes - 1)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        answer = "0"
        if line == "remove\n":
            cluster.remove_node(others.pop(), allow_graceful=False)
        elif line == "add\n":
            others.append(cluster.add_node(**node))
        elif line == "behead\n":
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        elif line == "stored\n":
            stats = get_memory_info_reply(get_state_from_address(cluster.address)).store_stats
            answer = f"{stats.object_store_bytes_primary_copy} {stats.object_store_bytes_used}"
        print(answer, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
