"""``metastep train`` and ``metastep meta-train``: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metastep.cli import options as o
from metastep.cli.display import console, output, run_bar, run_summary

if TYPE_CHECKING:
    from metastep.bench.config import RunConfig


def train(
    task: o.TaskName = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="A schedule by name (see `metastep list`), a file, or files joined by + for parts of the run."
        ),
    ] = "cosine",
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = 0,
    steps: o.Steps = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    optimizer: o.OptimizerName = None,
    momentum: o.Momentum = None,
    weight_decay: o.WeightDecay = None,
    warmup: o.Warmup = 0,
    train_size: o.TrainSize = None,
    noise: o.Noise = None,
    noise_rate: o.NoiseRate = 0.0,
    data: o.Data = None,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    log_every: o.LogEvery = None,
    eval_every: o.EvalEvery = None,
    checkpoint_every: o.CheckpointEvery = None,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Train a task's network with a schedule.

    Weights, curves, TensorBoard events and a record go to a folder; Ctrl-C stops after the current step, and --resume
    goes on bit for bit.
    """
    if resume is not None:
        _execute(None, resume, json, "train")
        return
    from metastep.bench.config import MetaConfig, RunConfig
    from metastep.bench.methods import METHODS, make_schedule
    from metastep.tasks.table import recipe_of

    recipe = recipe_of(o.require_task(task))
    make_schedule(schedule, 1000, text=recipe.kind == "language")  # a wrong name is said before data are read
    length = recipe.total_steps if steps is None else steps
    learns = schedule in METHODS and METHODS[schedule].learns
    config = RunConfig(
        task=recipe.name,
        schedule=schedule,
        seed=seed,
        optimizer=recipe.optimizer,
        optimizer_options=dict(recipe.optimizer_options),
        lr=recipe.learning_rate,
        batch_size=recipe.batch_size,
        total_steps=recipe.total_steps,
        warmup_steps=warmup,
        clip_norm=recipe.clip_norm,
        noise=noise,
        noise_rate=noise_rate,
        device=device,
        data_dir=data,
        train_size=train_size,
        eval_every=max(1, length // 20),
        meta=MetaConfig(every=max(1, length // 100)) if learns else None,
    )
    config = o.adjusted(
        config,
        steps=steps,
        epochs=epochs,
        steps_per_epoch=_steps_per_epoch(config, batch_size) if epochs is not None else 1,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        lr=lr,
        batch_size=batch_size,
        threads=threads,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
    )
    _execute(config, out or o.new_folder(f"{recipe.name}-{Path(schedule).stem}"), json, "train")


def meta_train(
    task: o.TaskName = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, schedule, data order and dropout.")] = 0,
    steps: o.Steps = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    every: Annotated[int | None, typer.Option(help="Steps between meta-updates.")] = None,
    meta_lr: Annotated[float | None, typer.Option(help="Rate of the meta-optimizer, Adam.")] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Units of the schedule's LSTM.")] = None,
    num_layers: Annotated[int | None, typer.Option(help="Layers of the schedule's LSTM.")] = None,
    optimizer: o.OptimizerName = None,
    momentum: o.Momentum = None,
    weight_decay: o.WeightDecay = None,
    train_size: o.TrainSize = None,
    noise: o.Noise = None,
    noise_rate: o.NoiseRate = 0.0,
    data: o.Data = None,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    log_every: o.LogEvery = None,
    eval_every: o.EvalEvery = None,
    checkpoint_every: o.CheckpointEvery = None,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Learn a schedule (MLR-SNet) while training a task's network, against its validation data.

    With no options: the published protocol where there is one (cifar10/resnet18, cifar100/wrn-28-10, ptb/lstm2). The
    folder's schedule.safetensors holds three snapshots for the three thirds of a later run.
    """
    if resume is not None:
        _execute(None, resume, json, "meta-train")
        return
    from dataclasses import replace

    from metastep.bench.protocols import meta_training, thirds
    from metastep.tasks.table import recipe_of

    recipe = recipe_of(o.require_task(task))
    published = meta_training(recipe, seed=seed, data_dir=data, device=device)
    config = o.adjusted(
        replace(published, noise=noise, noise_rate=noise_rate, train_size=train_size),
        steps=steps,
        epochs=epochs,
        steps_per_epoch=_steps_per_epoch(published, batch_size) if epochs is not None else 1,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        threads=threads,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
    )
    meta = config.meta
    assert meta is not None
    given = {"every": every, "meta_lr": meta_lr, "hidden_size": hidden_size, "num_layers": num_layers}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if config.total_steps != published.total_steps:
        changes["snapshots"] = thirds(config.total_steps)
    if every is not None:
        changes.update(in_epoch=None, first=False)
    config = replace(config, meta=replace(meta, **changes))
    _execute(config, out or o.new_folder(f"{recipe.name}-meta"), json, "meta-train")


def _steps_per_epoch(config: RunConfig, batch_size: int | None) -> int:
    from metastep.bench.protocols import load_run_task

    return load_run_task(config).steps_per_epoch(batch_size or config.batch_size)


def _execute(config: RunConfig | None, folder: Path, json: bool, command: str) -> None:
    """Run a new configuration in a folder, or go on with the run in it."""
    from metastep.bench.run import Run

    if config is not None and (folder / "run.json").exists():
        raise ValueError(f"out must be a new folder, {folder} holds a run; go on with it by --resume {folder}.")
    with run_bar(folder.name, quiet=json) as show:
        run = Run.resume(folder, on_progress=show) if config is None else Run(config, folder, on_progress=show)
        record = run.execute()
    if run.note is not None:
        console.print(f"note: {run.note}")
    if run.status == "stopped":
        raise o.Stopped(f"metastep {command} --resume {folder}", run.stop_code)
    if json:
        o.print_json({**record, "folder": str(folder)})
        return
    output.print(run_summary(record, str(folder)))
    if run.trainer.learner is not None:
        path = folder / "schedule.safetensors"
        output.print(f"learned schedule: {path}  (look at it: metastep inspect {path})")
