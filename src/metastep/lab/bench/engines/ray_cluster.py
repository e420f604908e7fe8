"""Cells over a Ray cluster: wherever there is room, and again where a machine is lost."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from metastep.lab.bench.run import Progress
from metastep.lab.runtime.folder import FolderInUse
from metastep.lab.runtime.ray_start import knock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    from metastep.lab.bench.workers import Watch, Work

#: Times that a cell is begun again because its process or its machine was lost, before it is given up.
_RETRIES = 4
_POLL_SECONDS = 0.2
#: Between two messages of a cell at work.
_TELL_SECONDS = 0.5
#: That a cell waits for the lock of its folder: what was lost may take a moment to be gone.
_LOCK_SECONDS = 60.0
#: Cells given to Ray, for each of its cores.
_IN_HAND = 4


class RayCluster:
    """Runs cells on a Ray cluster, one core each; Ray's core is all that is needed.

    Ray begins a cell again where its process or its machine was lost. It goes on from the last checkpoint, and a search
    from its last trial, if the folder of the experiment is on a file system that the machines share; otherwise from its
    beginning. Every machine needs metastep and the data.

    Args:
        address: of the cluster, as ``ray.init`` takes it; None: RAY_ADDRESS, else a cluster of this machine alone.
        gpus_per_run: share of a GPU that a cell is given, > 0, and whole above 1; None: no GPU.

    Raises:
        ValueError: for a share that is out of range.
        ImportError: if Ray is not installed.
    """

    here = False

    def __init__(self, address: str | None = None, *, gpus_per_run: float | None = None) -> None:
        if gpus_per_run is not None and not gpus_per_run > 0:
            raise ValueError(f"gpus_per_run must be > 0, got {gpus_per_run}; 0.25 puts 4 runs on a GPU.")
        if gpus_per_run is not None and gpus_per_run > 1 and gpus_per_run % 1:
            raise ValueError(
                f"gpus_per_run must be whole above 1, got {gpus_per_run}; only a single GPU can be shared."
            )
        self._address, self._gpus = address, gpus_per_run or 0.0
        _ray()

    def __call__(
        self, cells: Mapping[int, Work], should_stop: Callable[[], bool], watch: Watch
    ) -> Iterator[tuple[int, Any]]:
        """Run the cells; yield each one's number and result as it ends.

        Raises:
            ConnectionError: if the cluster cannot be reached.
            ValueError: if no machine of the cluster has so many GPUs as a cell is to be given.
            ChildProcessError: if a cell is lost again and again.
        """
        ray = self._connected()
        self._check_gpus(ray)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        work = ray.remote(_work).options(
            num_cpus=1,
            num_gpus=self._gpus,
            max_retries=_RETRIES,
            # Not the default of filling one machine first: a loss then costs fewer cells.
            scheduling_strategy="SPREAD",
        )
        waiting = list(cells.items())[::-1]
        running: dict[Any, int] = {}
        told: dict[int, int] = {}
        stopping = False
        while waiting or running:
            room = _IN_HAND * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < room:
                number, cell = waiting.pop()
                running[work.remote(number, cell, board)] = number
            done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
            if should_stop() and not stopping:
                stopping = True
                waiting.clear()
                ray.get(board.stop.remote())
            for number, progress in ray.get(board.seen.remote()).items():
                if number in running.values() and progress.step != told.get(number):
                    told[number] = progress.step
                    watch(number, progress)
            for reference in done:
                number = running.pop(reference)
                yield number, _result(ray, reference, cells[number])

    def _check_gpus(self, ray: ModuleType) -> None:
        """Refuse what no machine has: Ray would wait for such a one to join."""
        most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if self._gpus > most:
            raise ValueError(
                f"gpus_per_run must be at most what one machine of the cluster has, got {self._gpus:g}; Ray knows of "
                f"{most:g} GPUs there. Leave it out to train on processors."
            )

    def _connected(self) -> ModuleType:
        ray = _ray()
        if not ray.is_initialized():
            knock(self._address)
            try:
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConnectionError(
                    f"address must be that of a Ray cluster that can be reached, got {self._address} "
                    f"({(str(error).splitlines() or [''])[0].rstrip('.')}); start it with `ray start --head`."
                ) from error
        return ray


def _ray() -> ModuleType:
    """Return Ray, which is imported when cells are to be spread.

    Raises:
        ImportError: if it is not installed; it says which extra brings it.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray is to do, and warns of until told
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError('Ray is needed to spread cells over machines; pip install "metastep[ray]"') from error
    return ray


def _result(ray: ModuleType, reference: Any, cell: Work) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what the cell itself raised, such as a full disk
    except ray.exceptions.RayError as error:
        raise ChildProcessError(
            f"{cell.label} was lost {_RETRIES + 1} times ({type(error).__name__}: killed, or out of memory?); "
            "what has ended is kept."
        ) from error


class _Board:
    """On the machine of who asked: how far cells are, and whether to stop."""

    def __init__(self) -> None:
        self._stop, self._seen = False, dict[int, Progress]()

    def stop(self) -> None:
        self._stop = True

    def seen(self) -> dict[int, Progress]:
        """Give what cells told since the last time."""
        seen, self._seen = self._seen, {}
        return seen

    def tell(self, number: int, progress: Progress | None) -> bool:
        """Take how far a cell is; give whether to stop."""
        if progress is not None:
            self._seen[number] = progress
        return self._stop


# ---- on some machine


def _work(number: int, cell: Work, board: Any) -> Any:
    torch.set_num_threads(1)
    with _Line(number, board) as line:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return cell.run(line.should_stop, line.post)
            except FolderInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(_TELL_SECONDS)


class _Line:
    """From a cell to the board: a thread tells it now and then how far the cell is, and hears whether to stop."""

    def __init__(self, number: int, board: Any) -> None:
        self._number, self._board = number, board
        self._progress: Progress | None = None
        self._stop = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> _Line:
        self._hear()  # a cell that is begun after the stop ends at once
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def should_stop(self) -> bool:
        return self._stop

    def post(self, progress: Progress) -> None:
        self._progress = progress

    def _talk(self) -> None:
        while not self._over.wait(_TELL_SECONDS):
            self._hear()

    def _hear(self) -> None:
        ray = _ray()
        try:
            self._stop = ray.get(self._board.tell.remote(self._number, self._progress), timeout=10 * _TELL_SECONDS)
        except ray.exceptions.RayError:  # who asked is busy, or gone: then Ray ends this process
            return
