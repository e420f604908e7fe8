"""The results of an experiment as Markdown, for documents, and as CSV, for programs."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from metastep.lab.report.experiment_figures import trials
from metastep.lab.report.experiment_tables import number

if TYPE_CHECKING:
    from metastep.lab.report.experiment import Cell, Experiment


def as_markdown(experiment: Experiment) -> str:
    """Write a table per budget, methods by tasks, with intervals, areas and ranks; then what diverged or failed."""
    parts = [f"# {experiment.title}", *experiment.scores.remarks, *experiment.notes]
    parts += [_table(experiment, budget) for budget in reversed(experiment.budgets)]
    if experiment.published:
        rows = [
            f"| {one.method} | {one.task} | {one.value} (published) | {one.citation} |" for one in experiment.published
        ]
        parts.append("\n".join(["| method | task | paper | source |", "|---|---|---|---|", *rows]))
    lost = [cell for cell in experiment.cells if cell.status != "finished"]
    lines = [f"* {cell.method} on {cell.task}, {trials(cell.budget)}, seed {cell.seed}: {_why(cell)}" for cell in lost]
    parts.append("\n".join(["## Diverged and failed", "", *(lines or ["Every run finished."])]))
    return "\n\n".join(parts) + "\n"


def as_csv(experiment: Experiment) -> str:
    """Write a row per run."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("task", "method", "budget", "seed", "status", "test_loss", "metric", "test_metric", "seconds")
    writer.writerow((*names, "settings", "error", "record"))
    for cell in experiment.cells:
        numbers = (cell.task, cell.method, cell.budget, cell.seed, cell.status, cell.loss, cell.metric, cell.quality)
        writer.writerow((*numbers, cell.seconds, json.dumps(dict(cell.found)), cell.error or "", cell.source))
    return buffer.getvalue()


def _table(experiment: Experiment, budget: int) -> str:
    tasks, scores = experiment.tasks, experiment.scores
    areas = {one.method: one.area for one in scores.profiles if one.budget == budget}
    heads = ["method", "area", "rank", *(f"{task} ({experiment.metric(task)})" for task in tasks)]
    lines = [f"## {trials(budget).capitalize()}", "", _row(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for method in sorted(experiment.methods, key=lambda name: -areas.get(name, -1.0)):
        area = f"{areas[method]:.3f}" if method in areas else "–"
        rank = scores.ranks.get((method, budget))
        cells = [method, area, "–" if rank is None else f"{rank.mean:.1f}"]
        for task in tasks:
            interval = scores.qualities.get((task, method, budget))
            runs = experiment.groups.get((task, method, budget), [])
            lost = sum(cell.status != "finished" for cell in runs)
            words = []
            if interval is not None:
                of = experiment.metric(task)
                words.append(f"{number(interval.mean, of)} [{number(interval.low, of)}, {number(interval.high, of)}]")
            words += [f"{lost}/{len(runs)} lost"] if lost else []
            cells.append(" ".join(words) or "–")
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _why(cell: Cell) -> str:
    return cell.status if cell.error is None else f"{cell.status}, {cell.error}"
