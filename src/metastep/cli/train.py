"""``metastep train``: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metastep.cli import options as o
from metastep.cli.running import execute_run


@o.takes_run_options
def train(
    context: typer.Context,
    *,
    task: o.TaskName = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="A schedule by name (see `metastep list`), a file, or files joined by + for parts of the run. "
            "Default: signal-adamw for AdamW, otherwise cosine.",
            show_default=False,
        ),
    ] = None,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Run a learned schedule over an optimizer it is not for.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = 0,
    lr: o.Lr = None,
    run: o.RunOptions,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Train a task's network with a schedule.

    Weights, curves, TensorBoard events and a record go to a folder; Ctrl-C stops after the current step, and --resume
    goes on bit for bit.
    """
    if resume is not None:
        o.refuse_beside_resume(context)
        execute_run(None, resume, json, "train")
        return
    from metastep.lab.bench.protocols import training
    from metastep.lab.bench.schedules import SCHEDULES, make_schedule, refuse_another_base
    from metastep.lab.tasks.table import recipe_of
    from metastep.schedules.files import DEFAULTS

    recipe = recipe_of(o.require_task(task))
    schedule = schedule or DEFAULTS.get(run.optimizer or recipe.optimizer, "cosine")
    made, _ = make_schedule(schedule, 1000, text=recipe.kind == "language")  # a wrong name is said before data are read
    learns = schedule in SCHEDULES and SCHEDULES[schedule].learns
    config = training(recipe, schedule=schedule, learns=learns, seed=seed, lr=lr, **run.given())
    if not allow_other_base:
        refuse_another_base(made, config.optimizer, config.optimizer_options)
    execute_run(config, o.new_folder(out, f"{recipe.name}-{Path(schedule).stem}"), json, "train")
