"""How far many runs are, added up for whoever watches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metastep.lab.bench.run import Progress
from metastep.lab.bench.workers import Work


@dataclass(frozen=True, kw_only=True)
class ComparisonProgress:
    """How far a comparison or an experiment is.

    Args:
        runs_done: runs at their end, those that choose rates among them; in an experiment, a search is one.
        runs: all runs.
        steps_done: steps of all runs.
        steps: all steps.
        label: of the run that moved last.
        run: how far that one is; None if it has come to its end.
    """

    runs_done: int
    runs: int
    steps_done: int
    steps: int
    label: str
    run: Progress | None


class Count:
    """Adds up what runs have done.

    Args:
        runs: how many there will be.
        steps: of all of them.
        tell: called whenever one moves or ends.
    """

    def __init__(self, runs: int, steps: int, tell: Callable[[ComparisonProgress], None] | None) -> None:
        self._runs, self._steps, self._tell = runs, steps, tell
        self._ended, self._ended_steps = 0, 0
        self._moving: dict[int, int] = {}  # steps of the runs at work
        self._cells: Mapping[int, Work] = {}

    def begin(self, cells: Mapping[int, Work]) -> None:
        """These are the runs that the following numbers mean."""
        self._cells = cells
        self._moving.clear()

    def moved(self, number: int, progress: Progress) -> None:
        """A run took steps."""
        self._moving[number] = progress.step
        self._say(number, progress)

    def ended(self, number: int) -> None:
        """A run came to its end."""
        self._moving.pop(number, None)
        self._ended += 1
        self._ended_steps += self._cells[number].total_steps
        self._say(number, None)

    def passed(self, runs: int, steps: int) -> None:
        """So many runs and steps turned out to be done already."""
        self._ended += runs
        self._ended_steps += steps

    def _say(self, number: int, progress: Progress | None) -> None:
        if self._tell is not None:
            self._tell(
                ComparisonProgress(
                    runs_done=self._ended,
                    runs=self._runs,
                    steps_done=self._ended_steps + sum(self._moving.values()),
                    steps=self._steps,
                    label=self._cells[number].label,
                    run=progress,
                )
            )
