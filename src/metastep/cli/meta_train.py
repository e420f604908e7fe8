"""``metastep meta-train``: learn a schedule while a network trains."""

from __future__ import annotations

from typing import Annotated

import typer

from metastep.cli import options as o
from metastep.cli.running import execute_run


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
        execute_run(None, resume, json, "meta-train")
        return
    from metastep.bench.protocols import meta_training
    from metastep.tasks.table import recipe_of

    recipe = recipe_of(o.require_task(task))
    meta = {"every": every, "meta_lr": meta_lr, "hidden_size": hidden_size, "num_layers": num_layers}
    config = meta_training(recipe, seed=seed, meta=meta, **run.given())
    execute_run(config, o.new_folder(out, f"{recipe.name}-meta"), json, "meta-train")
