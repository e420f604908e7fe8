"""Curves of several seeds brought onto one grid, and the band that they span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from metastep.lab.report.records import metric_of
from metastep.lab.report.summary import by_label, is_learned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from metastep.lab.report.records import Record

    Vector = NDArray[np.float64]  # (points,)

Clock = Literal["step", "seconds"]
POINTS = 500  # more than a screen can show


@dataclass(frozen=True, kw_only=True)
class Band:
    """Mean, lowest and highest value over seeds; NaN where a seed has no finite value."""

    x: Vector
    mean: Vector
    low: Vector
    high: Vector


@dataclass(frozen=True, kw_only=True)
class Series:
    """The runs behind one line of every plot."""

    label: str
    learned: bool
    slot: int  # position in the palette; 0 is kept for a learned schedule
    finished: list[Record]
    diverged: list[Record]


def series_of(records: Sequence[Record]) -> list[Series]:
    """Group the records by label and give each label its place in the palette."""
    series, ordinary, learned = [], 1, 0
    for label, runs in by_label(records).items():
        marked = is_learned(runs[0])
        if marked and learned == 0:
            slot, learned = 0, 1
        else:
            slot, ordinary = ordinary, ordinary + 1
        series.append(
            Series(
                label=label,
                learned=marked,
                slot=slot,
                finished=[run for run in runs if run["status"] == "finished"],
                diverged=[run for run in runs if run["status"] == "diverged"],
            )
        )
    return series


def curve(record: Record, quantity: str, clock: Clock) -> tuple[Vector, Vector]:
    """Return x and y of one run, null as NaN.

    Args:
        record: the run.
        quantity: "train_loss", "lr", "valid_loss" or "valid_metric".
        clock: what x counts.
    """
    if quantity in ("train_loss", "lr"):
        x: Sequence[float] = record["train"][clock]
        y = record["train"]["loss" if quantity == "train_loss" else "lr"]
    else:
        x = record["valid"][clock]
        y = record["valid"]["loss" if quantity == "valid_loss" else metric_of(record)]
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)  # numpy reads None as NaN


def band(curves: Sequence[tuple[Vector, Vector]]) -> Band | None:
    """Return the band that the curves of several seeds span, or None where there is nothing to draw.

    The grid is every x that any seed has. Each seed is interpolated linearly between its own points. A band
    starts where the last seed has started; a seed that has ended keeps its last value, which is what its owner
    has from then on. Where a seed is NaN so are mean, low and high: a mean over the others would flatter.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    start = max(x[0] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[grid >= start]
    if len(grid) > POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, POINTS).round().astype(int)]
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # (seeds, points)
    return Band(x=grid, mean=values.mean(axis=0), low=values.min(axis=0), high=values.max(axis=0))
