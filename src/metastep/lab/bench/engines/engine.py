"""What an engine is: it runs numbered cells, and yields each one's number and result as it ends."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from metastep.lab.bench.workers import Watch, Work


class Engine(Protocol):
    """Runs cells.

    A cell that was stopped before its end has the status "stopped", or is not yielded. A cell whose process dies is run
    again. An engine yields a cell's result once.
    """

    @property
    def here(self) -> bool:
        """Whether cells run on this machine, which then must have the device that they train on."""

    def __call__(
        self, cells: Mapping[int, Work], should_stop: Callable[[], bool], watch: Watch
    ) -> Iterator[tuple[int, Any]]:
        """Run the cells; ``watch`` is told how far each is."""
