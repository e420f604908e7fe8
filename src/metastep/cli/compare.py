"""``metastep compare``: schedules on one task, or a whole experiment, and the page that shows what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import comparison_bar, stop_notice
from metastep.cli.experiments import (
    ExperimentOptions,
    is_experiment,
    known_task,
    refuse_for_experiments,
    refuse_for_tasks,
    run_experiment,
)
from metastep.cli.report import show_report
from metastep.lab.bench.torchrun import under_torchrun

if TYPE_CHECKING:
    from pathlib import Path

    from metastep.lab.bench.compare import Comparison


@o.takes(run=o.RunOptions, experiment=ExperimentOptions)
def compare(
    context: typer.Context,
    *,
    task: Annotated[
        str | None,
        typer.Argument(
            help="A task, such as digits/mlp, or an experiment, such as field/small; see `metastep list`.",
            metavar="TASK|EXPERIMENT",
        ),
    ] = None,
    schedules: Annotated[
        str, typer.Option(help="Comma-separated names or files; label=file names it, file@staircase is its control.")
    ] = "constant,multistep,cosine",
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Seeds 0, 1, ..., of rates that are off, too; default: 3, or the experiment's.", show_default=False
        ),
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(help="Comma-separated base rates: each schedule that reads one gets its best on held-out data."),
    ] = None,
    run: o.RunOptions,
    experiment: ExperimentOptions,
    workers: Annotated[int, typer.Option(help="Processes; each takes a run at a time.")] = 1,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Compare schedules on a task, or run an experiment of many methods and tasks, and write a self-contained page.

    Finished runs are kept: --resume goes on where a comparison or an experiment was stopped or killed.
    """
    from metastep.lab.bench.compare import Comparison
    from metastep.lab.bench.entrants import CompareConfig, Entrant
    from metastep.lab.bench.protocols import training
    from metastep.lab.tasks.table import recipe_of

    if under_torchrun():
        raise ValueError("compare must be started without torchrun; it starts processes of its own: --workers N.")
    if is_experiment(task, resume):
        refuse_for_experiments(context)
        run_experiment(context, task, run, experiment, seeds, workers, title, out, resume, json=json)
        return
    refuse_for_tasks(context)
    if resume is not None:
        o.refuse_beside_resume(context, "workers", "title")
        _execute(_resumed(resume), workers, title, json)
        return
    recipe = recipe_of(known_task(task))
    config = CompareConfig(
        base=training(recipe, schedule="constant", learns=True, **run.given()),
        entrants=tuple(Entrant.parse(part.strip()) for part in schedules.split(",") if part.strip()),
        seeds=3 if seeds is None else seeds,
        lrs=(recipe.learning_rate,) if lrs is None else _rates(lrs),
    )
    _execute(Comparison(config, o.new_folder(out, f"{recipe.name}-compare")), workers, title, json)


def _resumed(folder: Path) -> Comparison:
    from metastep.lab.bench.compare import Comparison

    try:
        return Comparison.resume(folder)
    except ValueError as error:
        raise ValueError(f"{folder / 'compare.json'} cannot be gone on with: {error}") from error


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"lrs must be numbers separated by commas, got {text!r}.") from None


def _execute(comparison: Comparison, workers: int, title: str | None, json: bool) -> None:
    from metastep.files import write_atomically
    from metastep.lab.runtime.stop_signals import StopSignal

    folder, resume = comparison.folder, o.resume_command("compare", comparison.folder)
    with o.says_how_to_go_on(resume), comparison_bar(quiet=json) as watch, StopSignal(stop_notice) as stop:
        records = comparison.execute(workers=workers, should_stop=stop, on_progress=watch)
    if records is None:
        raise o.Stopped(resume, stop.exit_code)
    write_atomically(folder / "notes.txt", "\n".join(_notes(comparison)) + "\n")
    show_report(folder, title or f"{comparison.config.base.task}: schedules compared", json=json)


def _notes(comparison: Comparison) -> list[str]:
    """How the rates were chosen, for the page."""
    rates = comparison.config.lrs
    chosen = comparison.chosen_rates()
    others = len(chosen) < len(comparison.config.entrants)
    if len(rates) == 1:
        own = " The others set their own scale." if others else ""
        return [f"Schedules that read a base rate were run at {rates[0]:g}, untuned.{own}"] if chosen else []
    found = ", ".join(f"{label} {rate:g}" for label, rate in chosen.items())
    own = " Schedules that set their own scale were not tuned." if others else ""
    return [
        f"Schedules that read a base rate got the best of {', '.join(f'{rate:g}' for rate in rates)}, by the outer "
        f"validation loss at the end of one run each on a seed of its own: {found}.{own}"
    ]
