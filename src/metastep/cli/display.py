"""What a person sees: progress on standard error, results on standard output."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from metastep.bench.run import Progress as RunProgress
    from metastep.report import SummaryRow

console = Console(stderr=True, highlight=False)
output = Console(highlight=False)


@contextmanager
def run_bar(title: str, *, quiet: bool) -> Iterator[Callable[[RunProgress], None]]:
    """A bar with loss, rate, accuracy and the time left; give what it yields to a run."""
    if quiet:
        yield lambda progress: None
        return
    with _bar("{task.fields[numbers]}") as bar:
        line = bar.add_task(title, total=None, numbers="")

        def show(progress: RunProgress) -> None:
            bar.update(line, completed=progress.step, total=progress.total_steps, numbers=_numbers(progress))

        yield show


@contextmanager
def comparison_bar(*, quiet: bool) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[RunProgress], None]]]:
    """A bar over the runs of a comparison, with the numbers of the one that is going on."""
    if quiet:
        yield lambda label, done, known: None, lambda progress: None
        return
    with _bar("{task.fields[numbers]}") as bar:
        line = bar.add_task("runs", total=None, numbers="")

        def cell(label: str, done: int, known: int) -> None:
            bar.update(line, completed=done, total=known, description=f"{label:<20.20}")

        yield cell, lambda progress: bar.update(line, numbers=f"step {progress.step} " + _numbers(progress))


def _bar(numbers: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(numbers),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _numbers(progress: RunProgress) -> str:
    parts = [f"loss {progress.loss:.4f}", f"rate {progress.lr:.3g}"]
    if "accuracy" in progress.valid:
        parts.append(f"acc {progress.valid['accuracy']:.1%}")
    if "perplexity" in progress.valid:
        parts.append(f"ppl {progress.valid['perplexity']:.1f}")
    if progress.meta_loss is not None:
        parts.append(f"meta {progress.meta_loss:.4f}")
    return "  ".join(parts)


def run_summary(record: dict[str, Any], folder: str) -> Table:
    """One run's outcome."""
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "status": record["status"],
        **{f"test {name}": f"{value:.4f}" for name, value in record["final"].items() if value is not None},
        "steps": str(record["total_steps"]),
        "training": f"{record['train_seconds']:.1f} s (evaluation {record['eval_seconds']:.1f} s)",
        "folder": folder,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def results_table(rows: Sequence[SummaryRow], title: str) -> Table:
    """The outcome of a comparison, best first."""
    table = Table(title=title, title_justify="left")
    table.add_column("schedule")
    table.add_column("runs", justify="right")
    metric = rows[0].metric if rows else "accuracy"
    for heading in ("test loss", f"test {metric}", "best valid loss", "peak rate", "last rate", "train s"):
        table.add_column(heading, justify="right")
    for row in rows:
        runs = f"{row.finished}/{row.seeds}" if row.diverged else str(row.finished)
        percent = row.metric == "accuracy"
        table.add_row(
            f"[bold]{row.label}[/bold]" if row.learned else row.label,
            f"[red]{runs} diverged {row.diverged}[/red]" if row.diverged else runs,
            _spread(row.test_loss),
            _spread(row.test_metric, percent=percent),
            _spread(row.best_valid_loss),
            _spread(row.peak_rate, digits=3, band=False),
            _spread(row.final_rate, digits=3, band=False),
            _spread(row.train_seconds, digits=3, band=False),
        )
    return table


def _spread(spread: Any, *, percent: bool = False, digits: int = 4, band: bool = True) -> str:
    """Mean and half the range over seeds."""
    if spread is None:
        return "-"
    factor, unit = (100, " %") if percent else (1, "")
    middle = f"{spread.mean * factor:.{digits}g}"
    return f"{middle} ± {spread.half_range * factor:.2g}{unit}" if band else f"{middle}{unit}"
