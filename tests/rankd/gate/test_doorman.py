"""Who gets in, and who makes way."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
import zmq
from served_gate import LIMITS, SIGNATURE, WAIT_SECONDS, was_cut


def test_connections_are_limited_by_peer(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections_per_peer=3))
    peers = [served.greeted() for _ in range(3)]
    for _ in range(5):
        with served.raw() as one_more:
            assert was_cut(one_more)
    assert served.counters["num_cut_too_many_connections"] == 5
    assert len([record for record in caplog.records if "too_many_connections" in record.message]) == 1
    assert f"uid {os.getuid()} pid {os.getpid()} at push" in caplog.text
    peers.pop().close()
    served.eventually(lambda: served.counters["num_connections_open"] == 2)
    peers.append(served.greeted())
    for peer in peers:
        peer.close()


def test_who_has_left_holds_no_place_and_loses_nothing(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections_per_peer=2, max_connections=4))
    for number in range(4):
        with served.greeted() as peer:
            peer.sendall(b"\0\1%d" % number)
    assert served.counters["num_connections_open"] >= 3, "nobody reads yet"
    with served.greeted(), served.greeted():
        assert sorted(served.take()[1][0] for _ in range(4)) == [b"0", b"1", b"2", b"3"]
    assert served.counters["num_cut_too_many_connections"] == 0


def test_who_did_not_finish_the_handshake_makes_way(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections_per_peer=3, handshake_seconds=600.0))
    with served.greeted() as old, served.raw() as oldest, served.raw() as younger:
        served.eventually(lambda: served.counters["num_connections_open"] == 3)
        with served.greeted() as honest:
            assert was_cut(oldest)
            honest.sendall(b"\0\1h")
            assert served.take()[1] == [b"h"]
            with served.greeted(), served.raw() as too_many:
                assert was_cut(younger)
                assert was_cut(too_many)
        old.sendall(b"\0\1o")
        assert served.take()[1] == [b"o"]
    assert served.counters["num_cut_too_many_connections"] == 3


def test_a_crowd_of_strangers_makes_way_not_the_one_beside_it(make: Any) -> None:
    served = make(dataclasses.replace(LIMITS, max_connections=3, handshake_seconds=600.0), tcp=True)

    def from_host(host: str) -> socket.socket:
        return socket.create_connection(served.where, WAIT_SECONDS, source_address=(host, 0))

    with from_host("127.0.0.2") as slow:
        served.eventually(lambda: served.counters["num_connections_open"] == 1)
        with from_host("127.0.0.3") as first, from_host("127.0.0.3") as second, served.greeted():
            assert was_cut(first)
            slow.sendall(SIGNATURE)
            second.sendall(SIGNATURE)
            assert slow.recv(1) == second.recv(1) == b"\xff"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(make: Any) -> None:
    served = make()
    os.chmod(served.where, 0o777)  # noqa: PTH101
    for part in (Path(served.where).parent, Path(served.where).parent.parent):
        part.chmod(0o755)
    script = (
        "import os, socket, sys; os.setuid(12345); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "print(s.recv(1))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, served.where], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "b''\n", done.stderr
    assert served.counters["num_cut_other_user"] == 1


OUT_OF_FILES = """
import os, queue, resource, socket, sys, time, zmq
from collections import Counter
from pathlib import Path
from rankd.gate import Gate, push_limits

resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
faults = queue.SimpleQueue()
directory = Path(sys.argv[1])
context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.setsockopt(zmq.RCVTIMEO, 30000)
router.bind(f"ipc://{directory}/inner")
outer = socket.socket(socket.AF_UNIX)
outer.bind(f"{directory}/outer")
gate = Gate(directory, Counter(), lambda *fault: faults.put(fault), lambda error: os._exit(3))
gate.listen("push", outer, f"{directory}/inner", "NULL", push_limits(16 << 20, 1 << 30))
gate.start()
print("ready", flush=True)
print(faults.get(timeout=30), flush=True)
print(router.recv_multipart()[1], flush=True)
print(faults.get(timeout=30), flush=True)
print(time.process_time() < 10)
os._exit(0)
"""


def test_without_descriptors_it_waits_and_goes_on(socket_dir: Path, context: zmq.Context[Any]) -> None:
    """libzmq would abort the process."""
    command = [sys.executable, "-c", OUT_OF_FILES, str(socket_dir)]
    with fork_server.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        peers = []
        for _ in range(100):
            peers.append(socket.socket(socket.AF_UNIX))
            peers[-1].connect(f"{socket_dir}/outer")
            peers[-1].sendall(SIGNATURE)
        assert "'open_files', 'the limit on open files is reached" in process.stdout.readline()
        for peer in peers:
            peer.close()
        after = context.socket(zmq.DEALER)
        after.connect(f"ipc://{socket_dir}/outer")
        after.send(b"after")
        assert process.stdout.readline() == "b'after'\n"
        assert process.stdout.readline() == "('open_files', None)\n"
        assert process.stdout.readline() == "True\n"
        after.close(linger=0)
    assert process.returncode == 0
