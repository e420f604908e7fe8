"""One row per label: what its seeds reached, with their spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metastep.lab.report.records import Metric, metric_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metastep.lab.report.records import Record


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over seeds with the range around it.

    Example:
        >>> spread = Spread.of([1.0, 2.0, 6.0])
        >>> spread.mean, spread.half_range, spread.n
        (3.0, 2.5, 3)
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the numbers in ``values``, or None where there is none."""
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if not numbers:
            return None
        return cls(mean=math.fsum(numbers) / len(numbers), low=min(numbers), high=max(numbers), n=len(numbers))

    @property
    def half_range(self) -> float:
        """Half of high - low; 0 for a single seed."""
        return (self.high - self.low) / 2

    def overlaps(self, other: Spread) -> bool:
        """Say whether the two ranges share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """What the runs with one label reached.

    Every spread is over the runs that finished, and None where no such run has the number.
    """

    label: str
    learned: bool
    finished: int  # runs
    diverged: int  # runs
    metric: Metric
    test_loss: Spread | None
    test_metric: Spread | None  # accuracy in [0, 1], or perplexity
    best_valid_loss: Spread | None  # the lowest outer validation loss of each run
    peak_rate: Spread | None
    final_rate: Spread | None
    train_seconds: Spread | None
    test_losses: dict[int, float]  # seed -> final test loss

    @property
    def seeds(self) -> int:
        """The number of runs, finished or not."""
        return self.finished + self.diverged


def summarize(records: Sequence[Record]) -> list[SummaryRow]:
    """Return one row per label, lowest mean final test loss first.

    A diverged run has no final loss, so a label with one comes after all labels without, whatever its other
    runs reached.

    Args:
        records: runs of one task.

    Raises:
        ValueError: ``records`` is empty or mixes tasks.
    """
    rows = [_row(label, runs) for label, runs in by_label(records).items()]
    return sorted(rows, key=lambda row: (row.diverged > 0, row.test_loss.mean if row.test_loss else math.inf))


def by_label(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group the records by label, in the order in which labels first appear."""
    if not records:
        raise ValueError("records must hold at least one run, got none; run a comparison first.")
    tasks = sorted({record["task"] for record in records})
    if len(tasks) > 1:
        raise ValueError(f"records must be of one task, got {', '.join(tasks)}; report each task by itself.")
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"], []).append(record)
    return groups


def is_learned(record: Record) -> bool:
    """Say whether the schedule of this run was learned: by its mark, else by its name."""
    return record.get("learned", record["schedule"].replace("-", "").lower().startswith("mlrsnet"))


def _row(label: str, runs: list[Record]) -> SummaryRow:
    finished = [run for run in runs if run["status"] == "finished"]
    metric = metric_of(runs[0])
    return SummaryRow(
        label=label,
        learned=is_learned(runs[0]),
        finished=len(finished),
        diverged=len(runs) - len(finished),
        metric=metric,
        test_loss=Spread.of(run["final"]["loss"] for run in finished),
        test_metric=Spread.of(run["final"][metric] for run in finished),
        best_valid_loss=Spread.of(_lowest(run["valid"]["loss"]) for run in finished),
        peak_rate=Spread.of(run["peak_rate"] for run in finished),
        final_rate=Spread.of(run["train"]["lr"][-1] if run["train"]["lr"] else None for run in finished),
        train_seconds=Spread.of(run["train_seconds"] for run in finished),
        test_losses={run["seed"]: loss for run in finished if (loss := run["final"]["loss"]) is not None},
    )


def _lowest(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None and math.isfinite(value)), default=None)
