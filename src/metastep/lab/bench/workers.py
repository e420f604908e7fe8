"""Runs in several processes: watched, stopped together, and started again where one of them dies."""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.records import read_record
from metastep.lab.bench.run import Progress, Run
from metastep.lab.runtime.executor import leave_signals_to_parent
from metastep.lab.runtime.executor import process_context as fresh_processes

#: Deaths of worker processes in a row, without a run finished in between, after which it is given up.
_DEATHS = 3
_POLL_SECONDS = 0.2
_IN_HAND = 3  # cells given to the pool, for each worker: thousands would take long to look through
_COLUMNS = 4  # of the board: step, loss, rate, accuracy or perplexity (NaN: none yet)


class Work(Protocol):
    """What a worker does: plain values that can be sent to a process."""

    @property
    def label(self) -> str:
        """What it is called while it runs."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps until it is done."""

    def run(self, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Do it, or go on with it; what is stopped before its end gives the status "stopped"."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison.

    Args:
        label: its entrant's.
        config: what to run.
        folder: where.
        schedule_file: the entrant's schedule, where it was given as a file.
    """

    label: str
    config: RunConfig
    folder: Path
    schedule_file: Path | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.config.total_steps

    def run(self, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Return its record: the one that is there, or that of running it now, from its checkpoint if it has one."""
        record = read_record(self.folder)
        if record is not None:
            return record
        return Run(
            self.config,
            self.folder,
            schedule_file=self.schedule_file,
            should_stop=should_stop,
            on_progress=on_progress,
            tensorboard=False,
        ).execute().as_dict()


#: Told the number of a cell and how far it is.
Watch = Callable[[int, Progress], None]


def run_here(cells: Mapping[int, Work], should_stop: Callable[[], bool], watch: Watch) -> Iterator[tuple[int, Any]]:
    """Run the cells one after the other in this process; yield each one's number and record.

    Args:
        cells: by number.
        should_stop: asked before every step; what was stopped has the status "stopped".
        watch: called as they run.
    """
    for number, cell in cells.items():
        if should_stop():
            return
        yield number, cell.run(should_stop, lambda progress, number=number: watch(number, progress))  # type: ignore[misc]


def run_in_workers(
    cells: Mapping[int, Work], workers: int, should_stop: Callable[[], bool], watch: Watch
) -> Iterator[tuple[int, Any]]:
    """The same in so many processes, in the order in which they finish.

    A worker ignores Ctrl-C, which the terminal sends to all; it stops when this process says so, and dies with it. A
    SIGTERM of its own, such as one to all processes of a job, ends it after its step, saved. When one dies, the pool is
    made again and its run goes on from its checkpoint.

    Raises:
        ChildProcessError: if workers die again and again.
    """
    left, deaths = dict(cells), 0
    while left:
        try:
            for number, record in _pool(left, workers, should_stop, watch):
                del left[number]
                deaths = 0
                yield number, record
            return  # what is left was stopped before it began
        except BrokenProcessPool as error:
            if should_stop():  # SIGTERM went to all: what is left is saved, or never began
                return
            deaths += 1
            if deaths == _DEATHS:
                raise ChildProcessError(
                    f"worker processes died {deaths} times in a row (killed, or out of memory?); {len(left)} runs are "
                    "left, use fewer workers."
                ) from error


def _pool(
    cells: Mapping[int, Work], workers: int, should_stop: Callable[[], bool], watch: Watch
) -> Iterator[tuple[int, Any]]:
    context = process_context()
    # Shared without locks: a worker that is killed cannot leave one locked.
    stop = context.RawValue("b", 0)
    board = context.RawArray("d", _COLUMNS * (max(cells) + 1))
    taken = context.Value("i", 0)  # workers that have begun
    pool = ProcessPoolExecutor(
        min(workers, len(cells)), mp_context=context, initializer=_begin, initargs=(stop, board, taken, workers)
    )
    futures: dict[Future[Any], int] = {}
    waiting = list(cells.items())[::-1]
    try:
        seen: dict[int, float] = {}
        while futures or waiting:
            while waiting and len(futures) < _IN_HAND * workers:
                number, cell = waiting.pop()
                futures[pool.submit(_work, number, cell)] = number
            done, _ = wait(futures, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if should_stop() and not stop.value:
                stop.value = 1
                waiting.clear()
                for future in futures:
                    future.cancel()
            for number in futures.values():
                progress = _read(board, number, cells[number])
                if progress.step != seen.get(number, 0):
                    seen[number] = progress.step
                    watch(number, progress)
            for future in done:
                number = futures.pop(future)
                if not future.cancelled():
                    yield number, future.result()
    finally:
        stop.value = 1  # an error or a second Ctrl-C: the others stop after their step
        pool.shutdown(cancel_futures=True)


def process_context() -> Any:
    """Processes that inherit no state of this one, with what making the first optimizer imports."""
    return fresh_processes([__name__, "torch._dynamo"])


def _read(board: Any, number: int, cell: Work) -> Progress:
    step, loss, lr, quality = board[_COLUMNS * number : _COLUMNS * (number + 1)]
    valid = {} if math.isnan(quality) or not step else {"perplexity" if quality >= 1 else "accuracy": quality}
    total = cell.total_steps
    return Progress(step=int(step), total_steps=total, loss=loss, lr=lr, valid=valid, meta_loss=None)


# ---- in the worker

_shared: tuple[Any, Any] | None = None
_working = _terminated = False


def _begin(stop: Any, board: Any, taken: Any, workers: int) -> None:
    """Prepare a worker: share the cores, take the next GPU in turn, ignore Ctrl-C, end when the parent does."""
    global _shared
    _shared = stop, board
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if (gpus := torch.cuda.device_count()) > 1:
        with taken.get_lock():
            torch.cuda.set_device(taken.value % gpus)
            taken.value += 1
    leave_signals_to_parent()
    signal.signal(signal.SIGTERM, _end_after_step)


def _end_after_step(number: int, frame: FrameType | None) -> None:
    """Die, but after the step that has begun, with a checkpoint: the pool takes a dead worker's work up again."""
    global _terminated
    _terminated = True
    if not _working:
        os._exit(128 + number)


def _work(number: int, cell: Work) -> dict[str, Any]:
    global _working
    assert _shared is not None
    stop, board = _shared

    def post(progress: Progress) -> None:
        quality = progress.valid.get("accuracy", progress.valid.get("perplexity", math.nan))
        board[_COLUMNS * number : _COLUMNS * (number + 1)] = [progress.step, progress.loss, progress.lr, quality]

    _working = True
    try:
        return cell.run(lambda: _terminated or bool(stop.value), post)
    finally:
        _working = False
        if _terminated:
            os._exit(128 + signal.SIGTERM)
