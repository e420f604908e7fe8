"""What a person sees: progress on standard error, results on standard output."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from metastep.lab.bench.run import Progress as RunProgress
    from metastep.lab.bench.runner import ExperimentProgress

_console = Console(stderr=True, highlight=False)


def show(table: Table) -> None:
    """A table on standard output."""
    Console(highlight=False).print(table)


def say(line: str) -> None:
    """A line on standard output, however long; paths in it stay whole."""
    typer.echo(line)


def note(text: str) -> None:
    """Something that a person should know, on standard error."""
    _console.print(f"note: {text}", markup=False, soft_wrap=True)


def stop_notice() -> None:
    """Say that Ctrl-C was understood."""
    note("stopping after the current step; once more stops at once.")


@contextmanager
def run_bar(*, quiet: bool) -> Iterator[Callable[[RunProgress], None]]:
    """A bar with loss, rate, accuracy and the time left; give what it yields to a run."""
    with _started_late(_bar(quiet)) as (bar, start):
        line = bar.add_task("", total=None, numbers="")

        def watch(progress: RunProgress) -> None:
            start()
            step, total = progress.step, progress.total_steps
            bar.update(line, completed=step, total=total, description=f"{step}/{total}", numbers=_numbers(progress))

        yield watch


@contextmanager
def experiment_bar(*, quiet: bool) -> Iterator[Callable[[ExperimentProgress], None]]:
    """A bar over the steps of all runs of an experiment, with the numbers of the one that moved last."""
    with _started_late(_bar(quiet)) as (bar, start):
        line = bar.add_task("runs", total=None, numbers="")

        def watch(progress: ExperimentProgress) -> None:
            start()
            runs = f"{progress.runs_done}/{progress.runs} runs"
            numbers = "" if progress.run is None else f"{_numbers(progress.run)}  "
            bar.update(
                line,
                completed=progress.steps_done,
                total=progress.steps,
                description=runs,
                numbers=escape(numbers + progress.label),
            )

        yield watch


def _bar(quiet: bool) -> Progress:
    return Progress(  # what is cut on a narrow screen is the end of the longest column, the numbers
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[numbers]}"),
        console=_console,
        disable=quiet,
    )


@contextmanager
def _started_late(bar: Progress) -> Iterator[tuple[Progress, Callable[[], None]]]:
    """A bar that is shown when there is progress, so that what is refused before is one line."""
    try:
        yield bar, bar.start
    finally:
        if bar.live.is_started:  # stopping prints an empty line where there is no terminal
            with suppress(OSError):  # the terminal may be gone
                bar.stop()


def _numbers(progress: RunProgress) -> str:
    parts = [f"loss {progress.loss:.4f}", f"rate {progress.lr:.3g}"]
    if "accuracy" in progress.valid:
        parts.append(f"acc {progress.valid['accuracy']:.1%}")
    if "perplexity" in progress.valid:
        parts.append(f"ppl {progress.valid['perplexity']:.1f}")
    if progress.meta_loss is not None:
        parts.append(f"meta {progress.meta_loss:.4f}")
    return "  ".join(parts)
