"""The populations of a step in several processes of this machine."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Self

import torch

from metastep.lab.evolution.jobs import Found, Job
from metastep.lab.runtime.executor import leave_signals_to_parent, process_context


class ProcessEngine:
    """Trains the populations of a step in so many processes.

    What they find comes in the order of the jobs: a run is the same with any number of processes. When one dies, what
    was not finished is left out of its step, and new processes take the next.

    Args:
        workers: processes, >= 1; the cores are shared among them.

    Raises:
        ValueError: for less than one worker.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}; one for each core is usual.")
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, work: Callable[[Job], Found], jobs: Sequence[Job]) -> list[Found | None]:
        """What the work returned for each job, None for one that was lost."""
        if self._pool is None:
            context = process_context([__name__])
            threads = max(1, (os.cpu_count() or 1) // self.workers)
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_begin, initargs=(threads,))
        try:
            futures = [self._pool.submit(work, job) for job in jobs]
        except BrokenProcessPool:  # one died between two steps
            self.close()
            return self(work, jobs)
        found = [_result(future) for future in futures]
        if any(isinstance(future.exception(), BrokenProcessPool) for future in futures):
            self.close()
        return found

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _result(future: Future[Found]) -> Found | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    leave_signals_to_parent()
