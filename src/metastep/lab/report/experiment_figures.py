"""The figures of an experiment: profiles, curves, rates, and sensitivity to the initial rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from metastep.lab.report.curves import band
from metastep.lab.report.vector import Line, Scale, plot, thinned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metastep.lab.report.experiment import Cell, Experiment

_POINTS = 60
#: Lines that have their colour from the beginning; the others are grey until they are asked for.
LIT = 8


def profiles(experiment: Experiment, budget: int, slots: Mapping[str, int]) -> str:
    """Draw the share of tasks on which each method is within a factor of the best loss."""
    lines = [
        Line(
            name=f"{one.method}: area {one.area:.3f}",
            slot=slots[one.method],
            x=one.factors,
            y=one.shares,
            lit=slots[one.method] < LIT,
            steps=True,
        )
        for one in experiment.scores.profiles
        if one.budget == budget
    ]
    label = f"Performance profiles, {trials(budget)}"
    return plot(
        lines, label=label, x_label="factor of the best test loss", x_scale="log", y_ends=(0, 1), width=440, height=270
    )


def sensitivity(experiment: Experiment, slots: Mapping[str, int]) -> str:
    """Draw the loss over that at the chosen rate, by how far the initial rate is off."""
    lines = [
        Line(name=one.method, slot=slots[one.method], x=one.factors, y=one.losses, lit=slots[one.method] < LIT)
        for one in experiment.scores.sensitivities
    ]
    return plot(
        lines,
        label="Sensitivity to the initial rate",
        x_label="initial rate over the chosen one",
        x_scale="log",
        y_scale="log",
        width=440,
        height=270,
    )


def losses(experiment: Experiment, task: str, budget: int, slots: Mapping[str, int]) -> str:
    """Draw the validation loss of a task over steps, means over seeds."""
    lines = _lines(experiment, task, budget, slots, curve="valid", quantity="loss")
    positive = all(y > 0 for line in lines for y in line.y if np.isfinite(y))
    scale: Scale = "log" if positive else "linear"
    return plot(lines, label=f"Validation loss of {task}", x_label="step", y_scale=scale, width=380, height=230)


def rates(experiment: Experiment, task: str, budget: int, slots: Mapping[str, int]) -> str:
    """Draw the learning rates of a task over steps, means over seeds."""
    lines = _lines(experiment, task, budget, slots, curve="train", quantity="lr")
    return plot(lines, label=f"Learning rates on {task}", x_label="step", y_scale="log", width=380, height=230)


def trials(budget: int) -> str:
    """Name a budget."""
    return "defaults, no tuning" if budget == 1 else f"best of {budget} trials"


def _lines(
    experiment: Experiment, task: str, budget: int, slots: Mapping[str, int], *, curve: str, quantity: str
) -> list[Line]:
    lines = []
    for method, slot in slots.items():
        x, y = _mean(experiment.groups.get((task, method, budget), []), curve, quantity)
        if len(x):
            lines.append(Line(name=method, slot=slot, x=x, y=y, lit=slot < LIT))
    return lines


def _mean(cells: Sequence[Cell], curve: str, quantity: str) -> tuple[list[float], list[float]]:
    """Give the mean over the seeds that finished; where none did, the curve of one that did not."""
    kept = [cell for cell in cells if cell.status == "finished"] or list(cells)[:1]
    parts: list[Mapping[str, Sequence[float | None]]] = [
        cell.valid if curve == "valid" else cell.train for cell in kept
    ]
    whole = band(
        [
            (np.asarray(part.get("step", ()), np.float64), np.asarray(part.get(quantity, ()), np.float64))
            for part in parts
        ]
    )
    return ([], []) if whole is None else thinned(whole.x.tolist(), whole.mean.tolist(), _POINTS)
