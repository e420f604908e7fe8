"""``metastep meta-train``: learn a schedule while a network trains, or while those of several tasks do."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metastep.cli import options as o
from metastep.cli.display import note, run_bar, say, show, stop_notice
from metastep.cli.tables import tasks_table
from metastep.cli.train import execute_run
from metastep.lab.bench.torchrun import is_rank_zero, local_ranks, process_group, under_torchrun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.lab.bench.config import RunConfig

Tasks = Annotated[
    list[str] | None,
    typer.Argument(
        help="Tasks, such as digits/mlp, or a model of your own, module:function. Several learn one schedule."
    ),
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
    run: o.RunOptions,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Learn a schedule (MLR-SNet) while training a task's network, against its validation data.

    With no options: the published protocol where there is one (cifar10/resnet18, cifar100/wrn-28-10, ptb/lstm2,
    ptb/lstm3). The folder's schedule.safetensors holds three snapshots for the three thirds of a later run.

    With several tasks each has a process of its own, or a rank of torchrun, and trains its own network; all learn one
    schedule from the mean of their meta-gradients.
    """
    from metastep.lab.bench.shared_run import check_alike, read_tasks

    if resume is not None:
        o.refuse_beside_resume(context, "tasks", "data_dir")
        named = (*(tasks or ()), run.data_dir)
        if (resume / "tasks.json").is_file():
            configs = [config for _, config in read_tasks(resume)]
            o.refuse_unnamed_code(o.resume_command("meta-train", resume, configs), configs, *named)
            _train_tasks(resume, json)
        else:
            _refuse_one_of_several(resume)
            execute_run(None, resume, json, "meta-train", named)
        return
    from metastep.lab.bench.protocols import meta_training
    from metastep.lab.tasks.table import recipe_of

    recipes = [recipe_of(o.require_task(task), run.data_dir) for task in tasks or (None,)]
    meta = {"every": every, "meta_lr": meta_lr, "hidden_size": hidden_size, "num_layers": num_layers}
    configs = [meta_training(recipe, seed=seed + k, meta=meta, **run.given()) for k, recipe in enumerate(recipes)]
    if len(configs) == 1:
        execute_run(configs[0], o.new_folder(out, f"{recipes[0].name}-meta"), json, "meta-train")
        return
    if any(config.code for config in configs):
        raise ValueError(f"TASK must be one alone where it is a model of your own, got {len(configs)} tasks.")
    check_alike(configs)
    _train_tasks(o.new_folder(out, f"{len(configs)}-tasks-meta"), json, configs)


def _train_tasks(folder: Path, json: bool, configs: Sequence[RunConfig] = ()) -> None:
    """Learn one schedule on several tasks, on the ranks of torchrun, or on local ones that are started here.

    Args:
        folder: the results'.
        json: whether to print one JSON object.
        configs: the runs of the tasks; none: those of the folder, which are resumed.
    """
    from metastep.lab.bench.shared_run import read_tasks, train_tasks
    from metastep.lab.runtime.stop_signals import StopSignal

    resume, first = o.resume_command("meta-train", folder), is_rank_zero()
    if under_torchrun():
        ranks = process_group("cpu")
    else:
        count = len(configs or read_tasks(folder))
        threads = max(1, (os.cpu_count() or 1) // count)
        _use_threads(threads)
        ranks = local_ranks(count, _other_rank, folder, configs, threads)
    with (
        ranks,
        run_bar(quiet=json or not first) as watch,
        StopSignal(stop_notice if first else None) as stop,
        o.says_how_to_resume(resume, folder),
    ):
        try:
            result = train_tasks(folder, configs, should_stop=stop, on_progress=watch, on_note=note)
        except ConnectionError as error:
            raise ConnectionError(f"{error} The checkpoints are kept, resume with: {resume}") from error
    if result is None:
        raise o.Stopped(resume, stop.exit_code)
    if first:
        _show(result, folder, json)


def _other_rank(folder: Path, configs: Sequence[RunConfig], threads: int) -> None:
    """What the other local ranks do; rank 0 says how it ended."""
    from metastep.lab.bench.shared_run import FailedTogether, train_tasks
    from metastep.lab.runtime.stop_signals import StopSignal

    _use_threads(threads)
    try:
        with StopSignal() as stop:
            train_tasks(folder, configs, should_stop=stop, on_note=note)
    except (FailedTogether, ConnectionError):
        sys.exit(2)
    except (ValueError, OSError) as error:
        note(f"error: {error}")
        sys.exit(2)


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)  # where a run says how many, it sets them again


def _refuse_one_of_several(folder: Path) -> None:
    """Raise a ValueError for the run folder of one task of several that learn together."""
    with contextlib.suppress(OSError):
        if (folder.resolve().parent / "tasks.json").is_file():
            raise ValueError(
                f"{folder} holds one of several tasks that learn together; resume all of them: "
                f"{o.resume_command('meta-train', folder.parent)}"
            )


def _show(result: dict[str, Any], folder: Path, json: bool) -> None:
    if json:
        o.print_json({**result, "folder": str(folder)})
        return
    show(tasks_table(result))
    say(f"folder: {folder}")
    path = folder / "schedule.safetensors"
    say(f"learned schedule: {path}  (look at it: metastep inspect {path})")
