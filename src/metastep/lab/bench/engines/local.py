"""Cells on this machine: in this process, or in several."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from metastep.lab.bench.workers import Watch, Work, run_here, run_in_workers


@dataclass(frozen=True)
class Local:
    """Runs cells in so many processes of this machine; one: in this process.

    Several GPUs are dealt out to the processes in turn, so 8 workers on 2 GPUs put 4 runs on each.

    Args:
        workers: processes, >= 1.

    Raises:
        ValueError: for fewer.
    """

    workers: int = 1
    here: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}.")

    def __call__(
        self, cells: Mapping[int, Work], should_stop: Callable[[], bool], watch: Watch
    ) -> Iterator[tuple[int, Any]]:
        """Run the cells."""
        if self.workers == 1:
            return run_here(cells, should_stop, watch)
        return run_in_workers(cells, self.workers, should_stop, watch)
