"""``metastep train`` and ``metastep meta-train``: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import note, run_bar, say, show, stop_notice
from metastep.cli.tables import run_summary

if TYPE_CHECKING:
    from metastep.bench.config import RunConfig


@o.takes_run_options
def train(
    context: typer.Context,
    *,
    task: o.TaskName = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="A schedule by name (see `metastep list`), a file, or files joined by + for parts of the run."
        ),
    ] = "cosine",
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
        _execute(None, resume, json, "train")
        return
    from metastep.bench.methods import METHODS, make_schedule
    from metastep.bench.protocols import training
    from metastep.tasks.table import recipe_of

    recipe = recipe_of(o.require_task(task))
    make_schedule(schedule, 1000, text=recipe.kind == "language")  # a wrong name is said before data are read
    learns = schedule in METHODS and METHODS[schedule].learns
    config = training(recipe, schedule=schedule, learns=learns, seed=seed, lr=lr, **run.given())
    _execute(config, o.new_folder(out, f"{recipe.name}-{Path(schedule).stem}"), json, "train")


@o.takes_run_options
def meta_train(
    context: typer.Context,
    *,
    task: o.TaskName = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, schedule, data order and dropout.")] = 0,
    every: Annotated[int | None, typer.Option(help="Steps between meta-updates.")] = None,
    meta_lr: Annotated[float | None, typer.Option(help="Rate of the meta-optimizer, Adam.")] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Units of the schedule's LSTM.")] = None,
    num_layers: Annotated[int | None, typer.Option(help="Layers of the schedule's LSTM.")] = None,
    run: o.RunOptions,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Learn a schedule (MLR-SNet) while training a task's network, against its validation data.

    With no options: the published protocol where there is one (cifar10/resnet18, cifar100/wrn-28-10, ptb/lstm2,
    ptb/lstm3). The folder's schedule.safetensors holds three snapshots for the three thirds of a later run.
    """
    if resume is not None:
        o.refuse_beside_resume(context)
        _execute(None, resume, json, "meta-train")
        return
    from metastep.bench.protocols import meta_training
    from metastep.tasks.table import recipe_of

    recipe = recipe_of(o.require_task(task))
    meta = {"every": every, "meta_lr": meta_lr, "hidden_size": hidden_size, "num_layers": num_layers}
    config = meta_training(recipe, seed=seed, meta=meta, **run.given())
    _execute(config, o.new_folder(out, f"{recipe.name}-meta"), json, "meta-train")


def _execute(config: RunConfig | None, folder: Path, json: bool, command: str) -> None:
    """Run a new configuration in a folder, or go on with the run in it."""
    from metastep.bench.locks import FolderInUse
    from metastep.bench.records import read_record
    from metastep.bench.run import Run, read_config
    from metastep.bench.stopping import StopSignal
    from metastep.bench.torchrun import is_first_process, met

    resume = o.resume_command(command, folder)
    record = None
    if config is None:
        config, record = read_config(folder), read_record(folder)
    first = is_first_process()
    if record is None:
        with (
            met(config.device),
            run_bar(folder.name, quiet=json or not first) as watch,
            StopSignal(stop_notice if first else None) as stop,
        ):
            run = Run(config, folder, should_stop=stop, on_progress=watch, on_note=note if first else None)
            try:
                record = run.execute()
            except FolderInUse:
                raise
            except OSError as error:
                raise OSError(f"{error}; the last good checkpoint is kept, go on with: {resume}") from error
        if run.status == "stopped":
            raise o.Stopped(resume, stop.exit_code)
    if not first:
        return
    if json:
        o.print_json({**record, "folder": str(folder)})
        return
    show(run_summary(record))
    say(f"folder: {folder}")
    if config.meta is not None and record["status"] == "finished":
        path = folder / "schedule.safetensors"
        say(f"learned schedule: {path}  (look at it: metastep inspect {path})")
