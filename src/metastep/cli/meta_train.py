"""``metastep meta-train``: learn a schedule while a network trains, or while those of several tasks do."""

from __future__ import annotations

from typing import Annotated

import typer

from metastep.cli import options as o
from metastep.cli.many_tasks import ENGINES, begin_many, resume_many
from metastep.cli.running import execute_run

Tasks = Annotated[
    list[str] | None,
    typer.Argument(help="Tasks, such as digits/mlp; see `metastep list`. Of several, all learn one schedule."),
]


@o.takes(run=o.RunOptions)
def meta_train(
    context: typer.Context,
    *,
    tasks: Tasks = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, schedule, data order and dropout.")] = 0,
    every: Annotated[int | None, typer.Option(help="Steps between meta-updates.")] = None,
    meta_lr: Annotated[float | None, typer.Option(help="Rate of the meta-optimizer, Adam.")] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Units of the schedule's LSTM.")] = None,
    num_layers: Annotated[int | None, typer.Option(help="Layers of the schedule's LSTM.")] = None,
    engine: Annotated[str, typer.Option(help="Of several tasks, a worker each: local processes, or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one started on this machine.")] = None,
    run: o.RunOptions,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Learn a schedule (MLR-SNet) while training a task's network, against its validation data.

    With no options: the published protocol where there is one (cifar10/resnet18, cifar100/wrn-28-10, ptb/lstm2,
    ptb/lstm3). The folder's schedule.safetensors holds three snapshots for the three thirds of a later run.

    With several tasks each trains its own network, and all move one schedule by the mean of their meta-gradients.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be {' or '.join(ENGINES)}, got {engine!r}.")
    if resume is not None:
        o.refuse_beside_resume(context, "engine", "address")
        if (resume / "tasks.json").is_file():
            resume_many(resume, engine, address, json=json)
        else:
            execute_run(None, resume, json, "meta-train")
        return
    from metastep.lab.bench.protocols import meta_training
    from metastep.lab.tasks.table import recipe_of

    recipes = [recipe_of(o.require_task(task)) for task in tasks or (None,)]
    meta = {"every": every, "meta_lr": meta_lr, "hidden_size": hidden_size, "num_layers": num_layers}
    configs = [meta_training(recipe, seed=seed + k, meta=meta, **run.given()) for k, recipe in enumerate(recipes)]
    if len(configs) > 1 or engine != "local":
        begin_many(configs, o.new_folder(out, f"{len(configs)}-tasks-meta"), engine, address, json=json)
    else:
        execute_run(configs[0], o.new_folder(out, f"{recipes[0].name}-meta"), json, "meta-train")
