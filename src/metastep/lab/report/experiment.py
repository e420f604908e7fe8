"""What the report of a whole experiment is made of: cells, one trained and judged run each, and their scores.

The room of the benchmark runs cells and computes scores; here they are plain numbers, and are shown.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Status = Literal["finished", "diverged", "failed"]
Key = tuple[str, str, int]  # task, method, budget


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task with one seed, tuned within one budget.

    Args:
        task: name of the task.
        method: name of the method.
        seed: of the run.
        budget: trials that the method's settings were chosen from; 1: its defaults.
        status: "finished", "diverged" (a result), or "failed" (an error, told by ``error``).
        metric: "accuracy", "perplexity" or "r2".
        loss: on the test split; None where there is none.
        quality: the metric on the test split.
        seconds: of training alone.
        train: lists ``step``, ``loss`` and ``lr``; may be empty.
        valid: lists ``step`` and ``loss``; may be empty.
        tuned: what the method tunes, over which values, in words by name.
        found: the settings it was run with, by name.
        error: what went wrong.
        source: file and line of the record, relative to the folder.
        origin: versions, machine, revision and command, by name.
    """

    task: str
    method: str
    seed: int
    budget: int
    status: Status
    metric: str
    loss: float | None
    quality: float | None
    seconds: float
    train: Mapping[str, Sequence[float | None]] = field(default_factory=dict, repr=False)
    valid: Mapping[str, Sequence[float | None]] = field(default_factory=dict, repr=False)
    tuned: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    source: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> Key:
        """Task, method and budget: what seeds are averaged over."""
        return (self.task, self.method, self.budget)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A performance profile (Dolan and More 2002): on which share of the tasks a method is within a factor of the best.

    Args:
        method: whose.
        budget: trials.
        area: under the profile, in [0, 1].
        factors: growing, from 1.
        shares: one a factor, in [0, 1].
    """

    method: str
    budget: int
    area: float
    factors: Sequence[float]
    shares: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What is lost when the initial rate is off.

    Args:
        method: whose.
        factors: the initial rate over the chosen one.
        losses: test loss over that at the chosen rate, averaged over tasks; infinite where it diverged.
    """

    method: str
    factors: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure from a paper, which is not ours and is marked so."""

    task: str
    method: str
    metric: str
    value: str
    citation: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the benchmark makes of the cells.

    Args:
        losses: intervals of the test loss by task, method and budget.
        qualities: the same of the metric.
        ranks: mean rank over tasks by method and budget, 1 is best.
        profiles: one a method and budget.
        sensitivities: one a method; may be empty.
        overheads: time of a step over that of plain SGD, by method; may be empty.
        remarks: sentences on significance and the like.
    """

    losses: Mapping[Key, Interval]
    qualities: Mapping[Key, Interval]
    ranks: Mapping[tuple[str, int], Interval] = field(default_factory=dict)
    profiles: Sequence[Profile] = ()
    sensitivities: Sequence[Sensitivity] = ()
    overheads: Mapping[str, float] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Cells and scores of one experiment, with what is needed to lay them out.

    Raises:
        ValueError: if there is no cell.
    """

    title: str
    cells: Sequence[Cell]
    scores: Scores
    published: Sequence[Published] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.cells:
            raise ValueError("cells must hold at least one run, got none; run the experiment first.")

    @cached_property
    def tasks(self) -> list[str]:
        """Their names in the order of the cells."""
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @cached_property
    def budgets(self) -> list[int]:
        """Numbers of trials, from the smallest."""
        return sorted({cell.budget for cell in self.cells})

    @cached_property
    def methods(self) -> list[str]:
        """Best first: by the area under the profile of the largest budget, else by rank, else in the cells' order."""
        names = list(dict.fromkeys(cell.method for cell in self.cells))
        budget = self.budgets[-1]
        areas = {one.method: one.area for one in self.scores.profiles if one.budget == budget}
        ranks = {method: rank.mean for (method, of), rank in self.scores.ranks.items() if of == budget}
        return sorted(names, key=lambda name: (-areas.get(name, -1.0), ranks.get(name, math.inf)))

    @cached_property
    def groups(self) -> dict[Key, list[Cell]]:
        """The seeds of each task, method and budget."""
        groups: dict[Key, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            groups[cell.key].append(cell)
        return {key: sorted(cells, key=lambda cell: cell.seed) for key, cells in groups.items()}

    def metric(self, task: str) -> str:
        """Name what is measured beside the loss."""
        return next(cell.metric for cell in self.cells if cell.task == task)


def better_is_higher(metric: str) -> bool:
    """Tell whether more of a metric is better."""
    return metric != "perplexity"
