"""The Ray driver: a process of the daemon's own, between it and a Ray cluster.

    python -m rankd.executors.ray.driver DESCRIPTOR

The descriptor is a socket of the daemon's. It says first what to join, and is told "joined" or "failed"; then it sends
works, and is told outcomes, faults of devices, and every few seconds that the cluster is there. A process of its own,
because Ray ends the process of a driver that has lost its cluster, may hang in there, and takes over its signals.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from rankd.executors.ray.cluster import ClusterError, joined, resources
from rankd.executors.ray.crew import Crew, Member
from rankd.executors.ray.dispatch import Dispatch, Job, Worker
from rankd.executors.ray.frames import receive, send

log = logging.getLogger("rankd.ray")

LOOK_SECONDS = 2.0
"""Between two looks at the cluster. The daemon counts on hearing of them."""

NO_WORKER_SECONDS = 30.0
"""Without any worker the daemon does better by itself."""

LEAVE_SECONDS = 3.0
"""For leaving in order; what Ray does not get done by then ends with this process."""


class Driver:
    """One loop over a queue of events, which other threads fill: works that come, calls that are over, looks at the
    cluster."""

    def __init__(self, end: socket.socket, told: dict[str, Any]) -> None:
        """`end`: the daemon. `told`: its first message."""
        self._end = end
        self._address = ""
        self._max_bytes = int(told["max_bytes"])
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._dispatch = Dispatch()
        self._crew = Crew(
            told["measure"], told["use_gpus"], told["max_workers"], lambda *event: self._events.put(event)
        )
        self._ready: dict[Worker, Member] = {}
        self._last_worker = time.monotonic()
        self._told_joined = False

        threading.Thread(target=self._hear, daemon=True).start()

    def run(self, address: str) -> None:
        """`address`: of the cluster that was joined. Ends with ClusterError, or when the daemon is gone."""
        self._address = address
        threading.Thread(target=self._look, daemon=True).start()
        while (event := self._events.get())[0] != "end":
            what, *rest = event
            getattr(self, f"_on_{what}")(*rest)
            self._hand_out()

    def _hear(self) -> None:
        """Works of the daemon; its end is ours, whatever Ray is at."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                message, arrays = receive(self._end)
                self._events.put(("job", Job(message["number"], message["layer"], message["work"], arrays)))
        self._events.put(("end",))
        time.sleep(LEAVE_SECONDS)
        os._exit(1)

    def _look(self) -> None:
        """Where the cluster does not answer, nothing is said, and the daemon goes by that."""
        while True:
            try:
                self._events.put(("look", resources()))
            except Exception as error:  # whatever Ray raises, a cluster that is well answers
                log.warning("the cluster does not answer: %s", error)
            time.sleep(LOOK_SECONDS)

    def _on_look(self, has: Any) -> None:
        self._crew.fit(has)
        self._max_bytes = min(self._max_bytes, has.store_bytes // 2)
        if self._dispatch.workers:
            self._last_worker = time.monotonic()
        elif self._told_joined and time.monotonic() - self._last_worker > NO_WORKER_SECONDS:
            raise ClusterError(f"no worker has been there for {NO_WORKER_SECONDS:.0f} s")
        self._tell("alive")
        for worker in [worker for worker in self._ready if not worker.calls]:
            self._ready[worker].actor.hello.remote().future().add_done_callback(
                lambda future, worker=worker: self._events.put(("echo", worker, future))
            )

    def _on_echo(self, worker: Worker, future: Any) -> None:
        """Who dies while it is idle is replaced before it is needed."""
        from ray.exceptions import RayActorError

        if worker in self._ready and isinstance(future.exception(), RayActorError):
            self._tell_lost(worker)
            self._lose(worker)

    def _on_job(self, job: Job) -> None:
        self._dispatch.put(job)

    def _on_hello(self, member: Member, future: Any) -> None:
        try:
            self._crew.greet(member, future.result())
        except ClusterError as error:
            self._refuse(member, error)
        except Exception as error:
            self._refuse(member, ClusterError(f"a worker does not start: {error}"))
        else:
            worker = Worker(self._crew.on_gpu)
            self._ready[worker] = member
            self._dispatch.workers.append(worker)
            if not self._told_joined:
                self._told_joined = True
                more = {"num_workers": self._crew.num_wanted, "on_gpu": self._crew.on_gpu, "max_bytes": self._max_bytes}
                self._tell("joined", address=self._address, **more)

    def _refuse(self, member: Member, error: ClusterError) -> None:
        """Before there is any worker that is a reason not to start."""
        if not self._told_joined:
            raise error
        self._tell("lost", text=str(error).partition("\n")[0])
        self._crew.lose(member)

    def _hand_out(self) -> None:
        """A call for every worker that has room, each with one put of its matrices."""
        import ray

        while (placed := self._dispatch.next()) is not None:
            worker, jobs = placed
            if jobs[0].where is None:
                places = [sum(len(job.arrays) for job in jobs[:number]) for number in range(len(jobs))]
                batch = ray.put([array for job in jobs for array in job.arrays])
                for job, place in zip(jobs, places, strict=True):
                    job.where, job.arrays = (batch, place), ()
            wheres = [job.where for job in jobs if job.where is not None]
            places, descriptions = [place for _, place in wheres], [job.description for job in jobs]
            call = self._ready[worker].actor.measure.remote(wheres[0][0], places, descriptions)
            call.future().add_done_callback(
                lambda future, worker=worker, jobs=jobs: self._events.put(("answer", worker, jobs, future))
            )

    def _on_answer(self, worker: Worker, jobs: list[Job], future: Any) -> None:
        from ray.exceptions import RayActorError

        if worker not in self._ready:  # it died, which another of its calls has told
            return
        try:
            outcomes, faults = future.result()
        except RayActorError:
            self._tell_lost(worker)
            self._lose(worker)
            return
        self._crew.measured(self._ready[worker])
        self._dispatch.done(worker, jobs)
        for job, packed in zip(jobs, outcomes, strict=True):
            job.where = None  # the last of a batch frees it
            self._tell("outcome", number=job.number, packed=packed)
        if faults:  # a process cannot use a GPU again that it lost; another one may
            self._tell("fault", text=faults[0])
            self._lose(worker)

    def _tell_lost(self, worker: Worker) -> None:
        member = self._ready[worker]
        self._tell("lost", text=f"host={member.host} pid={member.pid} num_calls={len(worker.calls)}")

    def _lose(self, worker: Worker) -> None:
        member = self._ready.pop(worker)
        for job in self._dispatch.lost(worker):
            job.where = None
            log.warning("given back, num_deaths=%d", job.num_deaths)
            self._tell("back", number=job.number)
        self._crew.lose(member)
        self._crew.fill()

    def _tell(self, kind: str, **more: Any) -> None:
        send(self._end, {"kind": kind, **more})


def main() -> None:
    os.umask(0o077)  # before Ray: files of its are for this user alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon says when it is over
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end = socket.socket(fileno=int(sys.argv[1]))
    told, _ = receive(end)
    driver = Driver(end, told)
    try:
        start = {key: told[key] for key in ("address", "num_cores", "num_gpus", "store_bytes", "directory")}
        with joined(**start) as address:
            try:
                driver.run(address)
            except ClusterError as error:  # said before leaving, which may take its time
                _fail(end, error)
            except Exception as error:  # Ray's, which tells of one actor or call
                _fail(end, ClusterError(f"the cluster does not answer: {error}"))
    except Exception as error:
        _fail(end, error)


def _fail(end: socket.socket, error: Exception) -> None:
    with contextlib.suppress(OSError):
        send(end, {"kind": "failed", "text": str(error) or repr(error)})


if __name__ == "__main__":
    main()
