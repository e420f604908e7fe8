"""Run one function over many items: in this process, in several processes of this machine, or on a Ray cluster.

Every :class:`Executor` keeps the same promises: a result is given once; an item whose process is killed is run again;
a stop reaches every item at work; an error that an item raises ends the run after the others have been stopped.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch

from metastep.lab.runtime.folder import FolderInUse
from metastep.lab.runtime.stop_signals import never

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType, ModuleType

Item = TypeVar("Item")
Result = TypeVar("Result")
ItemIn = TypeVar("ItemIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

#: Times that the process of one item may be lost before the item is given up.
_ATTEMPTS = 3
_POLL_SECONDS = 0.2
#: At least so long between two reports of one item.
_REPORT_SECONDS = 0.2
#: Ray itself waits for minutes where nobody answers.
_REACH_SECONDS = 5.0
#: Between two messages of a Ray task to who asked.
_TALK_SECONDS = 0.5
#: A Ray task waits so long for the lock of a folder: the process that was lost may take a moment to be gone.
_LOCK_SECONDS = 60.0
#: Tasks given to Ray, for each of its cores.
_IN_HAND = 4


class Function(Protocol[ItemIn, ResultOut]):
    """What is run for every item; it and the items can be pickled."""

    def __call__(self, item: ItemIn, should_stop: Callable[[], bool], report: Callable[[Any], None], /) -> ResultOut:
        """Work on an item.

        Args:
            item: to work on.
            should_stop: asked now and then; True: save, and return what says so.
            report: told how far the item is; some reports may be left out.
        """


def _ignore(*report: Any) -> None:
    """Nobody asked how far an item is."""


class Executor(ABC):
    """Runs a function over items; a context that ends its processes."""

    #: Whether items run on this machine, which then must have the device that they use.
    local: bool

    @abstractmethod
    def run(
        self,
        function: Function[Item, Result],
        items: Sequence[Item],
        *,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[int, Any], None] = _ignore,
        describe: Callable[[Item], str] = repr,
    ) -> Iterator[tuple[int, Result]]:
        """Run the function over the items; yield each one's number and result as it ends.

        Args:
            function: see :class:`Function`.
            items: by number.
            should_stop: asked all the time; once True, no further item is begun and those at work are told.
            on_progress: told an item's number and its latest report.
            describe: names an item in an error.

        Raises:
            ChildProcessError: if the process of an item is lost again and again.
            Exception: what the function raised.
        """

    @abstractmethod
    def close(self) -> None:
        """End the processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _lost(what: str, why: str) -> ChildProcessError:
    return ChildProcessError(
        f"the process of {what} was lost {_ATTEMPTS} times ({why}); what has ended is kept. "
        "Use fewer workers if memory is short."
    )


# ---- processes of this machine


class LocalExecutor(Executor):
    """Runs items in so many processes of this machine; one: in this process.

    A process that is killed is replaced, and its item run again, while the others go on. Workers ignore Ctrl-C, which
    the terminal sends to all; they stop when this process says so, and end with it. A SIGTERM to one of them, such as
    one to all processes of a job, lets its item stop and save before it ends.

    The cores are shared among the workers, and several GPUs are dealt out in turn: 8 workers on 2 GPUs put 4 on each.

    Args:
        workers: processes, >= 1. They are started when they are first needed and kept until :meth:`close`.

    Raises:
        ValueError: for fewer.

    Example:
        >>> with LocalExecutor() as executor:
        ...     list(executor.run(lambda item, should_stop, report: abs(item), [-1, 2]))
        [(0, 1), (1, 2)]
    """

    local = True

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}; one for each core is usual.")
        self.workers = workers
        self._started: list[_Worker] = []
        self._end = weakref.finalize(self, _end_workers, self._started)  # also when the interpreter exits
        self._context: Any = None
        self._stop: Any = None

    def run(
        self,
        function: Function[Item, Result],
        items: Sequence[Item],
        *,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[int, Any], None] = _ignore,
        describe: Callable[[Item], str] = repr,
    ) -> Iterator[tuple[int, Result]]:
        """Run the function over the items; see :meth:`Executor.run`."""
        if self.workers == 1:
            numbered = itertools.takewhile(lambda _: not should_stop(), enumerate(items))
            return ((number, function(item, should_stop, partial(on_progress, number))) for number, item in numbered)
        return self._run_in_workers(function, items, should_stop, on_progress, describe)

    def close(self) -> None:
        """End the processes, and wait until they are gone; one at work first finishes, or stops."""
        started = list(self._started)
        _end_workers(self._started)
        for worker in started:
            worker.process.join()

    def _run_in_workers(
        self,
        function: Function[Item, Result],
        items: Sequence[Item],
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, Any], None],
        describe: Callable[[Item], str],
    ) -> Iterator[tuple[int, Result]]:
        waiting = list(range(len(items)))[::-1]
        busy: dict[Any, tuple[_Worker, int]] = {}
        losses: Counter[int] = Counter()
        try:
            while waiting or busy:
                if should_stop() and not (self._stop is not None and self._stop.value):
                    waiting.clear()
                    self._tell_to_stop(bool(busy))
                while waiting and (worker := self._idle(function, busy)) is not None:
                    number = waiting.pop()
                    busy[worker.pipe] = worker, number
                    with suppress(OSError):  # killed since; what is read from the pipe says so
                        worker.pipe.send_bytes(pickle.dumps((number, function, items[number])))
                for pipe in connection.wait(list(busy), timeout=_POLL_SECONDS):
                    worker, number = busy[pipe]
                    try:
                        kind, content = pickle.loads(worker.pipe.recv_bytes())
                    except (EOFError, OSError):  # killed
                        del busy[pipe]
                        self._forget(worker)
                        if should_stop():  # SIGTERM went to all: what is left is saved, or never began
                            continue
                        losses[number] += 1
                        if losses[number] == _ATTEMPTS:
                            raise _lost(describe(items[number]), "killed, or out of memory?") from None
                        waiting.append(number)
                        continue
                    if kind == "report":
                        on_progress(number, content)
                        continue
                    del busy[pipe]
                    if kind == "error":
                        raise content
                    yield number, content
        finally:  # after an error, or where nobody asks for more: the others stop after their step
            if busy:
                self._tell_to_stop(True)
                self._wait_for(busy)
            if self._stop is not None:
                self._stop.value = 0

    def _tell_to_stop(self, somebody: bool) -> None:
        if somebody:
            self._stop.value = 1

    def _idle(self, function: object, busy: dict[Any, tuple[_Worker, int]]) -> _Worker | None:
        """A worker that waits for an item, started if there may be one more; None if all are at work."""
        for worker in list(self._started):
            if not worker.process.is_alive():  # killed while it waited
                if worker.pipe not in busy:
                    self._forget(worker)
            elif worker.pipe not in busy:
                return worker
        if len(self._started) >= self.workers:
            return None
        if self._context is None:
            module = getattr(function, "__module__", "")
            self._context = process_context([module, "torch._dynamo"])  # what making the first optimizer imports
            self._stop = self._context.RawValue("b", 0)  # without a lock, which a killed worker could leave locked
        places = {worker.place for worker in self._started}
        place = min(set(range(self.workers)) - places)
        theirs, ours = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._stop, place, self.workers))
        process.start()
        theirs.close()  # so that the end of the process can be read from ours
        self._started.append(worker := _Worker(process, ours, place))
        return worker

    def _forget(self, worker: _Worker) -> None:
        self._started.remove(worker)
        worker.pipe.close()
        worker.process.join()

    def _wait_for(self, busy: dict[Any, tuple[_Worker, int]]) -> None:
        while busy:
            for pipe in connection.wait(list(busy)):
                worker, _ = busy[pipe]
                try:
                    if pickle.loads(worker.pipe.recv_bytes())[0] == "report":
                        continue
                except (EOFError, OSError):
                    self._forget(worker)
                del busy[pipe]


@dataclass(frozen=True, eq=False)
class _Worker:
    """A process, this side of the pipe to it, and its place among the workers."""

    process: Any
    pipe: Any
    place: int


def _end_workers(workers: list[_Worker]) -> None:
    """Close the pipes: a worker ends when it reads from a closed one, or writes to it."""
    for worker in workers:
        worker.pipe.close()
    workers.clear()


def _serve(pipe: Any, stop: Any, place: int, workers: int) -> None:
    """In a worker: run items until the other side closes the pipe."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if (gpus := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(place % gpus)
    leave_signals_to_parent()
    working = terminated = False

    def end_after_step(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        if not working:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, end_after_step)
    reported = -_REPORT_SECONDS

    def report(progress: Any) -> None:
        nonlocal reported
        if (now := time.monotonic()) - reported >= _REPORT_SECONDS:
            reported = now
            pipe.send_bytes(pickle.dumps(("report", progress)))

    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        working = True
        try:
            _, function, item = pickle.loads(message)
            answer = pickle.dumps(("result", function(item, lambda: terminated or bool(stop.value), report)))
        except Exception as error:  # whatever the item raised is raised where it was asked for
            answer = _pickled_error(error)
        working = False
        if terminated:  # it has saved; whoever takes its place goes on
            os._exit(128 + signal.SIGTERM)
        try:
            pipe.send_bytes(answer)
        except OSError:  # nobody waits for it
            return


def _pickled_error(error: Exception) -> bytes:
    try:
        pickle.loads(data := pickle.dumps(("error", error)))
    except Exception:  # some errors cannot be rebuilt from their arguments
        return pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}")))
    return data


def process_context(preload: Sequence[str]) -> Any:
    """Processes that inherit no state of this one: forked from a server that has imported modules, or spawned.

    Args:
        preload: names of the modules that take long to import.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in preload if name])
    return context


def leave_signals_to_parent() -> None:
    """In a worker: ignore Ctrl-C, which the terminal sends to all, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


# ---- a Ray cluster


class RayExecutor(Executor):
    """Runs items on a Ray cluster, one core each; Ray's core is all that is needed.

    Ray runs an item again where its process or its machine was lost. What the item keeps in a folder is found again if
    that folder is on a file system that the machines share. Every machine needs metastep, and the data.

    Args:
        address: of the cluster, as ``ray.init`` takes it; None: RAY_ADDRESS, else a cluster of this machine alone.
        workers: items at work at once, at most; None: as many as the cluster has cores.
        gpus: share of a GPU that an item is given, > 0, and whole above 1; None: no GPU.

    Raises:
        ValueError: for a share that is out of range, or fewer than one worker.
        ImportError: if Ray is not installed.
    """

    local = False

    def __init__(self, address: str | None = None, *, workers: int | None = None, gpus: float | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}; leave it out to use every core of the cluster.")
        if gpus is not None and not gpus > 0:
            raise ValueError(f"gpus_per_run must be > 0, got {gpus}; 0.25 puts 4 runs on a GPU.")
        if gpus is not None and gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_run must be whole above 1, got {gpus}; only a single GPU can be shared.")
        self._address, self._workers, self._gpus = address, workers, gpus or 0.0
        self._connected = False  # whether it was this object that did
        self._board: Any = None
        _ray()

    def run(
        self,
        function: Function[Item, Result],
        items: Sequence[Item],
        *,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[int, Any], None] = _ignore,
        describe: Callable[[Item], str] = repr,
    ) -> Iterator[tuple[int, Result]]:
        """Run the function over the items; see :meth:`Executor.run`.

        Raises:
            ConnectionError: if the cluster cannot be reached.
            ValueError: if no machine of the cluster has so many GPUs as an item is to be given.
        """
        ray = self._connect()
        self._check_gpus(ray)
        board = self._own_board(ray)
        task = ray.remote(_run_on_ray).options(
            num_cpus=1,
            num_gpus=self._gpus,
            max_retries=_ATTEMPTS - 1,
            # Not the default of filling one machine first: a loss then costs fewer items.
            scheduling_strategy="SPREAD",
        )
        waiting = list(range(len(items)))[::-1]
        running: dict[Any, int] = {}
        stopping = False
        try:
            while waiting or running:
                if not stopping and should_stop():
                    stopping = True
                    waiting.clear()
                    ray.get(board.stop.remote())
                room = self._workers or _IN_HAND * max(1, int(ray.cluster_resources().get("CPU", 1)))
                while waiting and len(running) < room:
                    number = waiting.pop()
                    running[task.remote(function, items[number], number, board)] = number
                done, _ = ray.wait(list(running), timeout=_POLL_SECONDS) if running else ([], [])
                at_work = set(running.values())
                for number, report in ray.get(board.reports.remote()).items():
                    if number in at_work:
                        on_progress(number, report)
                for reference in done:
                    number = running.pop(reference)
                    yield number, _result(ray, reference, describe(items[number]))
        finally:
            if running and ray.is_initialized():
                board.stop.remote()
                self._board = None  # what still runs reads that it is to stop

    def close(self) -> None:
        """Leave the cluster, and shut it down if it was started here."""
        if self._connected and (ray := _ray()).is_initialized():
            ray.shutdown()
        self._connected, self._board = False, None

    def _own_board(self, ray: ModuleType) -> Any:
        if self._board is None:
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            self._board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        ray.get(self._board.begin.remote())
        return self._board

    def _check_gpus(self, ray: ModuleType) -> None:
        """Refuse what no machine has: Ray would wait for such a one to join."""
        most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if self._gpus > most:
            raise ValueError(
                f"gpus_per_run must be at most what one machine of the cluster has, got {self._gpus:g}; Ray knows of "
                f"{most:g} GPUs there. Leave it out to train on processors."
            )

    def _connect(self) -> ModuleType:
        ray = _ray()
        if not ray.is_initialized():
            check_reachable(self._address)
            try:
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConnectionError(
                    f"address must be that of a Ray cluster that can be reached, got {self._address} "
                    f"({(str(error).splitlines() or [''])[0].rstrip('.')}); start it with `ray start --head`."
                ) from error
            self._connected = True
        return ray


def check_reachable(address: str | None) -> None:
    """Make sure that somebody listens at HOST:PORT; other addresses are Ray's to find.

    Raises:
        ConnectionError: if nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster at {address!r} ({error}); start one: ray start --head.") from error


def _ray() -> ModuleType:
    """Return Ray, which is imported when items are to be spread over machines.

    Raises:
        ImportError: if it is not installed; it says which extra brings it.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray is to do, and warns of until told
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError('Ray is needed to spread runs over machines; pip install "metastep[ray]".') from error
    return ray


def _result(ray: ModuleType, reference: Any, what: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what the item itself raised, such as a full disk
    except ray.exceptions.RayError as error:
        raise _lost(what, f"{type(error).__name__}: killed, or out of memory?") from error


class _Board:
    """An actor on the machine of who asked: how far items are, and whether to stop."""

    def __init__(self) -> None:
        self._stop, self._reports = False, dict[int, Any]()

    def begin(self) -> None:
        """Forget what was before."""
        self._stop, self._reports = False, {}

    def stop(self) -> None:
        """From now on, whoever asks is to stop."""
        self._stop = True

    def reports(self) -> dict[int, Any]:
        """Give what was reported since the last time."""
        reports, self._reports = self._reports, {}
        return reports

    def tell(self, number: int, report: Any) -> bool:
        """Take how far an item is; give whether to stop."""
        if report is not None:
            self._reports[number] = report
        return self._stop


def _run_on_ray(function: Function[Any, Any], item: Any, number: int, board: Any) -> Any:
    torch.set_num_threads(1)
    with _Line(number, board) as line:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return function(item, line.should_stop, line.report)
            except FolderInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(_TALK_SECONDS)


class _Line:
    """From an item to the board: a thread tells it now and then how far the item is, and hears whether to stop."""

    def __init__(self, number: int, board: Any) -> None:
        self._number, self._board = number, board
        self._latest: Any = None
        self._stop = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> Self:
        self._hear()  # an item that is begun after the stop ends at once
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def should_stop(self) -> bool:
        return self._stop

    def report(self, progress: Any) -> None:
        self._latest = progress

    def _talk(self) -> None:
        while not self._over.wait(_TALK_SECONDS):
            self._hear()

    def _hear(self) -> None:
        ray = _ray()
        try:
            self._stop = ray.get(self._board.tell.remote(self._number, self._latest), timeout=10 * _TALK_SECONDS)
        except ray.exceptions.RayError:  # who asked is busy, or gone: then Ray ends this process
            return
