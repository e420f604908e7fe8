"""``metastep train``: one run; and how a command begins or resumes a run and shows what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import note, run_bar, say, show, stop_notice
from metastep.cli.tables import run_summary

if TYPE_CHECKING:
    from metastep.lab.bench.config import RunConfig


@o.takes_run_options
def train(
    context: typer.Context,
    *,
    task: o.TaskName = None,
    model: o.Model = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="A schedule by name (see `metastep list`), a file, or files joined by + for parts of the run. "
            "Default: calibrated; cosine for an optimizer that is not torch's.",
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
        o.refuse_beside_resume(context, "task", "model", "data_dir")
        execute_run(None, resume, json, "train", named=(task, model, run.data_dir))
        return
    from metastep.lab.bench.optimizers import usual_schedule
    from metastep.lab.bench.protocols import training
    from metastep.lab.bench.schedules import SCHEDULES, make_schedule, refuse_another_base
    from metastep.lab.tasks.table import recipe_of

    recipe = recipe_of(o.require_task(task, model), run.data_dir)
    schedule = schedule or usual_schedule(run.optimizer or recipe.optimizer)
    made, _ = make_schedule(schedule, 1000, text=recipe.kind == "language")  # a wrong name is said before data are read
    learns = schedule in SCHEDULES and SCHEDULES[schedule].learns
    config = training(recipe, schedule=schedule, learns=learns, seed=seed, lr=lr, **run.given())
    if not allow_other_base:
        refuse_another_base(made, config.optimizer, config.optimizer_options)
    execute_run(config, o.new_folder(out, f"{recipe.name}-{Path(schedule).stem}"), json, "train")


def execute_run(
    config: RunConfig | None, folder: Path, json: bool, command: str, named: tuple[str | None, ...] = ()
) -> None:
    """Run a new configuration in a folder; None resumes the run in it, of which the code must be named."""
    from metastep.lab.bench.config import read_config
    from metastep.lab.bench.run import Run
    from metastep.lab.bench.torchrun import is_rank_zero, process_group
    from metastep.lab.records import read_record
    from metastep.lab.runtime.stop_signals import StopSignal

    record, begun = None, config is None
    if config is None:
        config = read_config(folder)
        if (path := folder / "record.json").is_file():
            record = read_record(path)
    resume = o.resume_command(command, folder, [config])
    if begun:
        o.refuse_unnamed_code(resume, [config], *named, ended=record is not None)
    first = is_rank_zero()
    if record is None:
        with (
            process_group(config.device),
            run_bar(quiet=json or not first) as watch,
            StopSignal(stop_notice if first else None) as stop,
        ):
            run = Run(config, folder, should_stop=stop, on_progress=watch, on_note=note if first else None)
            with o.says_how_to_resume(resume, folder):
                record = run.execute()
        if run.status == "stopped":
            raise o.Stopped(resume, stop.exit_code)
    if not first:
        return
    if json:
        o.print_json({**record.as_dict(), "folder": str(folder)})
        return
    show(run_summary(record))
    say(f"folder: {folder}")
    if config.meta is not None and record.status == "finished":
        path = folder / "schedule.safetensors"
        say(f"learned schedule: {path}  (look at it: metastep inspect {path})")
