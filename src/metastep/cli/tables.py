"""Tables for the terminal, at most 80 columns wide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.lab.records import Record
    from metastep.lab.report import Group, Interval


def run_summary(record: Record) -> Table:
    """One run's outcome."""
    table = Table(show_header=False, box=None, pad_edge=False)
    options = ", ".join(f"{name} {value}" for name, value in record.settings.get("optimizer_options", {}).items())
    rows = {
        "status": record.status,
        "schedule": record.schedule,
        "optimizer": f"{record.optimizer}{f' ({options})' if options else ''}",
        **{f"test {name}": f"{value:.4f}" for name, value in record.final.items() if value is not None},
        "steps": str(record.train["step"][-1] if record.train["step"] else 0),
        "training": f"{record.train_seconds:.1f} s (evaluation {record.eval_seconds:.1f} s)",
    }
    if record.peak_rate is not None:
        rows["rate"] = (
            f"{record.train['lr'][0]:.3g} first, {record.peak_rate:.3g} highest, {record.train['lr'][-1]:.3g} last"
        )
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def tasks_table(result: dict[str, Any]) -> Table:
    """The outcome of several tasks that learned one schedule."""
    title = f"{len(result['tasks'])} tasks, {result['outer_steps']} meta-updates"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "seed", "status"):
        table.add_column(heading)
    table.add_column("test", justify="right")
    for task in result["tasks"]:
        numbers = [f"{name} {value:.4f}" for name, value in task["final"].items() if value is not None]
        table.add_row(escape(task["task"]), str(task["seed"]), task["status"], ", ".join(numbers) or "-")
    return table


def results_table(groups: Sequence[Group], title: str) -> Table:
    """The outcome of a comparison, best first; ± is half the range over seeds."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("schedule", overflow="fold", min_width=9)
    table.add_column("runs", justify="right", no_wrap=True)
    for heading in ("test loss", groups[0].metric, "rate: peak → last", "train s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        lost = sum(run.record.status == "diverged" for run in group.runs)
        words = [f"{lost} diverged"] * (lost > 0) + [f"{group.lost - lost} failed"] * (group.lost > lost)
        table.add_row(
            f"[bold]{escape(group.method)}[/bold]" if group.learned else escape(group.method),
            f"[red]{', '.join(words)}[/red]" if words else str(len(group.finished)),
            _spread(group.test_loss),
            _spread(group.test_metric, percent=group.metric == "accuracy"),
            f"{_mean(group.peak_rate, 2)} → {_mean(group.final_rate, 2)}",
            _mean(group.train_seconds),
        )
    return table


def _spread(spread: Interval | None, *, percent: bool = False) -> str:
    """Mean and half the range over seeds, to the digit in which seeds differ."""
    if spread is None:
        return "-"
    factor, unit = (100, " %") if percent else (1, "")
    mean, half = spread.mean * factor, spread.half_range * factor
    if spread.n == 1:
        return f"{mean:.4g}{unit}"
    digits = min(4, max(0, -math.floor(math.log10(half)))) if half > 0 else 4 - len(f"{mean:.0f}")
    return f"{mean:.{max(0, digits)}f} ± {half:.{max(0, digits)}f}{unit}"


def _mean(spread: Interval | None, digits: int = 3) -> str:
    return "-" if spread is None else f"{spread.mean:.{digits}g}"
