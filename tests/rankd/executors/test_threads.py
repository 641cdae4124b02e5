import os
import threading

import torch
from works import CPU, no_fault, work

from rankd.executors.threads import ThreadExecutor
from rankd.weights import DEFAULT_SETTINGS


def executor() -> ThreadExecutor:
    return ThreadExecutor(CPU, no_fault, DEFAULT_SETTINGS)


def test_one_intra_op_thread_a_worker_and_the_callers_count_untouched() -> None:
    torch.set_num_threads(2)
    threads_of = executor()
    try:
        assert threads_of.num_slots == threads_of.num_workers >= 2
        meet = threading.Barrier(threads_of.num_slots)

        def look() -> tuple[int, int, int]:
            meet.wait(30)
            return (
                threading.get_ident(),
                torch.get_num_threads(),
                os.getpriority(os.PRIO_PROCESS, threading.get_native_id()),
            )

        seen = [threads_of._pool.submit(look) for _ in range(threads_of.num_slots)]
        workers, threads, nices = zip(*(future.result(30) for future in seen), strict=True)
        assert len(set(workers)) == threads_of.num_slots and set(threads) == {1}
        assert min(nices) > os.getpriority(os.PRIO_PROCESS, 0), "measuring yields to the trainer"
    finally:
        threads_of.close()
    assert torch.get_num_threads() == 2


def test_close_drops_what_has_not_begun() -> None:
    threads = executor()
    release = threading.Event()
    busy = [threads._pool.submit(release.wait, 30) for _ in range(threads.num_slots)]
    waiting = threads.submit(work(torch.ones(2, 2)))
    threads.close()
    release.set()
    assert waiting.cancelled() and all(future.result(30) for future in busy)
