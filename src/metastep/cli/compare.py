"""``metastep compare``: several schedules on one task, and the page that shows what came out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import comparison_bar, output, results_table

if TYPE_CHECKING:
    from metastep.bench.compare import CompareConfig, Comparison


def compare(
    task: o.TaskName = None,
    schedules: Annotated[
        str, typer.Option(help="Comma-separated names or files; label=file names it, file@staircase is its control.")
    ] = "constant,multistep,cosine",
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... for every schedule.")] = 3,
    lrs: Annotated[
        str | None,
        typer.Option(help="Comma-separated base rates: each schedule that reads one gets its best on held-out data."),
    ] = None,
    steps: o.Steps = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
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
    workers: Annotated[int, typer.Option(help="Processes; each takes a run at a time.")] = 1,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Compare schedules on a task over several seeds, and write a self-contained page.

    Finished runs are kept: the same command with --resume goes on where it was stopped or killed.
    """
    from metastep.bench.compare import CompareConfig, Comparison, Entrant
    from metastep.bench.config import MetaConfig, RunConfig
    from metastep.tasks.table import recipe_of

    if resume is not None:
        _execute(Comparison.resume(resume), workers, title, json)
        return
    recipe = recipe_of(o.require_task(task))
    base = RunConfig(
        task=recipe.name,
        schedule="constant",
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
        eval_every=max(1, (steps or recipe.total_steps) // 20),
    )
    if epochs is not None:
        from metastep.bench.protocols import load_run_task

        per_epoch = load_run_task(base).steps_per_epoch(batch_size or base.batch_size)
    base = o.adjusted(
        base,
        steps=steps,
        epochs=epochs,
        steps_per_epoch=per_epoch if epochs is not None else 1,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        threads=threads,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        meta=MetaConfig(every=max(1, (steps or recipe.total_steps) // 100)),
    )
    config = CompareConfig(
        base=base,
        entrants=tuple(Entrant.parse(part.strip()) for part in schedules.split(",") if part.strip()),
        seeds=seeds,
        lrs=(recipe.learning_rate,) if lrs is None else _rates(lrs),
    )
    folder = out or o.new_folder(f"{recipe.name}-compare")
    if (folder / "compare.json").exists():
        raise ValueError(f"out must be a new folder, {folder} holds a comparison; go on with it by --resume {folder}.")
    _execute(Comparison(config, folder), workers, title, json)


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"lrs must be numbers separated by commas, got {text!r}.") from None


def _execute(comparison: Comparison, workers: int, title: str | None, json: bool) -> None:
    from metastep.cli.report import write_report

    folder = comparison.folder
    with comparison_bar(quiet=json) as (on_cell, on_progress):
        records = comparison.execute(workers=workers, on_cell=on_cell, on_progress=on_progress)
    if records is None:
        raise o.Stopped(f"metastep compare --resume {folder}")
    rows, page = write_report(
        folder, title or f"{comparison.config.base.task}: schedules compared", notes(comparison.config)
    )
    if json:
        o.print_json({"folder": str(folder), "report": str(page), "rows": [asdict(row) for row in rows]})
        return
    output.print(results_table(rows, comparison.config.base.task))
    output.print(f"report: {page}")


def notes(config: CompareConfig) -> list[str]:
    """How the rates were chosen, for the page."""
    rates = ", ".join(f"{lr:g}" for lr in config.lrs)
    if len(config.lrs) == 1:
        return [f"Schedules that read a base rate were run at {rates}, untuned; the others set their own scale."]
    return [
        f"Schedules that read a base rate got the best of {rates}, by the outer validation loss of one run each on a "
        "seed of its own. Schedules that set their own scale were not tuned."
    ]
