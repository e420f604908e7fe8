"""``metastep compare``: schedules on one task, and the page that shows what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import experiment_bar, stop_notice
from metastep.cli.report import show_report
from metastep.lab.bench.torchrun import under_torchrun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.lab.bench.config import RunConfig
    from metastep.lab.bench.plan import ExperimentPlan
    from metastep.lab.bench.runner import ExperimentRun
    from metastep.lab.records import Record
    from metastep.lab.runtime.executor import Executor


@o.takes_run_options
def compare(
    context: typer.Context,
    *,
    task: o.TaskName = None,
    model: o.Model = None,
    schedules: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated names or files; label=file names it, file@staircase is its control. Default: "
            "constant, multistep, cosine, calibrated; with plain sgd mlrsnet-cifar10, too.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... of every schedule.")] = 3,
    lrs: Annotated[
        str | None,
        typer.Option(help="Comma-separated base rates: each schedule that reads one gets its best on held-out data."),
    ] = None,
    run: o.RunOptions,
    workers: o.Workers = 1,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Compare schedules on a task, with the same seeds for all, and write a self-contained page.

    Finished runs are kept: --resume resumes a comparison that was stopped or killed. Many methods on many tasks are an
    experiment: `metastep experiment`.
    """
    from metastep.lab.bench.plan import ExperimentPlan
    from metastep.lab.bench.protocols import training
    from metastep.lab.bench.runner import ExperimentRun
    from metastep.lab.bench.schedules import split_schedules
    from metastep.lab.runtime.executor import LocalExecutor
    from metastep.lab.tasks.table import recipe_of

    refuse_torchrun("compare")
    if resume is not None:
        o.refuse_beside_resume(context, "workers", "task", "model", "data_dir")
        experiment = ExperimentRun.resume(resume)
        refuse_unnamed_code(experiment, task, model, run.data_dir)
    else:
        recipe = recipe_of(o.require_task(task, model), run.data_dir)
        base = training(recipe, schedule="constant", learns=True, **run.given())
        plan = ExperimentPlan.comparison(
            base,
            split_schedules(usual_schedules(base) if schedules is None else schedules),
            seeds=seeds,
            lrs=(recipe.learning_rate,) if lrs is None else _rates(lrs),
        )
        experiment = ExperimentRun(plan, o.new_folder(out, f"{recipe.name}-compare"))
    with LocalExecutor(workers) as executor:
        execute_and_show(experiment, executor, "compare", json=json)


def execute_and_show(experiment: ExperimentRun, executor: Executor, command: str, *, json: bool) -> None:
    """Run a comparison or an experiment, or resume it; write its records, notes and page."""
    from metastep.files import write_atomically
    from metastep.lab.runtime.stop_signals import StopSignal

    folder = experiment.folder
    resume = o.resume_command(command, folder, experiment.plan.bases.values())
    with o.says_how_to_resume(resume, folder), experiment_bar(quiet=json) as watch, StopSignal(stop_notice) as stop:
        records = experiment.execute(executor, should_stop=stop, on_progress=watch)
    if records is None:
        raise o.Stopped(resume, stop.exit_code)
    if experiment.plan.candidates:
        write_atomically(folder / "notes.txt", "\n".join(_notes(experiment.plan, records)) + "\n")
    try:
        show_report(folder, experiment.plan.title, json=json)
    except ImportError as error:
        raise ImportError(f"{error} The records are kept; then type: metastep report {folder}") from error


def usual_schedules(base: RunConfig) -> str:
    """The schedules that are compared if none are named: the common ones, and ours that suit the optimizer."""
    from metastep.lab.bench.optimizers import usual_schedule

    names = ["constant", "multistep", "cosine"]
    if usual_schedule(base.optimizer) == "calibrated":
        names.append("calibrated")
    if base.optimizer == "sgd" and not base.optimizer_options.get("momentum"):
        names.append("mlrsnet-cifar10")
    return ",".join(names)


def refuse_unnamed_code(experiment: ExperimentRun, *named: str | None) -> None:
    """Raise a ValueError if the runs of a folder need code that was not named on the command line."""
    configs = experiment.plan.bases.values()
    o.refuse_unnamed_code(o.resume_command("compare", experiment.folder, configs), configs, *named)


def refuse_torchrun(command: str) -> None:
    """Commands that start processes of their own are not started by torchrun.

    Raises:
        ValueError: under torchrun.
    """
    if under_torchrun():
        raise ValueError(f"{command} must be started without torchrun; it starts processes of its own: --workers N.")


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"lrs must be numbers separated by commas, got {text!r}.") from None


def _notes(plan: ExperimentPlan, records: Sequence[Record]) -> list[str]:
    """How the rates were chosen, for the page."""
    chosen = {record.label: record.lr for record in records}
    reading = [candidate.label for candidate in plan.candidates if candidate.reads_lr]
    others = len(reading) < len(plan.candidates)
    if not reading:
        return []
    if len(plan.lrs) == 1:
        own = " The others set their own scale." if others else ""
        return [f"Schedules that read a base rate were run at {plan.lrs[0]:g}, untuned.{own}"]
    found = ", ".join(f"{label} {chosen[label]:g}" for label in reading)
    own = " Schedules that set their own scale were not tuned." if others else ""
    return [
        f"Schedules that read a base rate got the best of {', '.join(f'{rate:g}' for rate in plan.lrs)}, by the outer "
        f"validation loss at the end of one run each on a seed of its own: {found}.{own}"
    ]
