"""``metastep compare EXPERIMENT``: methods and tasks of a named experiment, the searches and runs, and their page."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import comparison_bar, stop_notice
from metastep.cli.report import show_report

if TYPE_CHECKING:
    from metastep.lab.bench.engines.engine import Engine
    from metastep.lab.bench.experiments.experiment import Arena
    from metastep.lab.bench.plans import Plan
    from metastep.lab.bench.runner import ExperimentRun


class Size(StrEnum):
    """How much of an experiment is run."""

    SMALL = "small"
    FULL = "full"


class Where(StrEnum):
    """What runs the cells."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """What can be said of an experiment; None leaves it to the experiment."""

    scale: Annotated[Size, typer.Option(help="Of an experiment: small for 2 cores, full for a GPU.")] = Size.SMALL
    tasks: Annotated[str | None, typer.Option(help="Of an experiment: only these tasks, separated by commas.")] = None
    methods: Annotated[
        str | None,
        typer.Option(help="Of an experiment: these methods, separated by commas; with --resume, further ones."),
    ] = None
    budgets: Annotated[
        str | None, typer.Option(help="Of an experiment: numbers of trials, such as 1,8; 1 is the defaults.")
    ] = None
    engine: Annotated[Where, typer.Option(help="Of an experiment: where it runs.")] = Where.LOCAL
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; default: RAY_ADDRESS, else a new one on this machine.")
    ] = None
    gpus_per_run: Annotated[
        float | None, typer.Option(help="With Ray: share of a GPU that a run is given, such as 0.25.")
    ] = None
    storage: Annotated[
        str | None, typer.Option(help="Of an experiment: Optuna storage URL of its trials; default: in the folder.")
    ] = None


def is_experiment(name: str | None, resume: Path | None) -> bool:
    """Whether an experiment is meant, by its name or by the folder to go on with."""
    if resume is not None:
        return (resume / "experiment.json").is_file()
    from metastep.lab.bench.experiments.table import EXPERIMENTS

    return name in EXPERIMENTS


def known_task(name: str | None) -> str:
    """The name of a task.

    Raises:
        ValueError: if it is none; it has the nearest names of tasks and experiments.
    """
    from metastep.lab.bench.experiments.table import EXPERIMENTS
    from metastep.lab.bench.names import unknown_name
    from metastep.lab.tasks import task_names

    task = o.require_task(name)
    if task not in task_names():
        raise unknown_name("name", task, [*task_names(), *EXPERIMENTS])
    return task


def refuse_for_tasks(context: typer.Context) -> None:
    """One task needs no options of experiments.

    Raises:
        ValueError: if such were typed.
    """
    if given := o.typed(context, (field.name for field in fields(ExperimentOptions))):
        raise ValueError(f"{given[0]} must be given with an experiment only, got it with one task; leave it out.")


def refuse_for_experiments(context: typer.Context) -> None:
    """Experiments say their schedules and rates by methods.

    Raises:
        ValueError: if schedules or rates were typed.
    """
    if given := o.typed(context, ("schedules", "lrs", "optimizer", "momentum")):
        raise ValueError(f"{given[0]} must be given with one task only, got it with an experiment; use --methods.")


def run_experiment(
    context: typer.Context,
    name: str | None,
    run: o.RunOptions,
    options: ExperimentOptions,
    seeds: int | None,
    workers: int,
    title: str | None,
    out: Path | None,
    resume: Path | None,
    *,
    json: bool,
) -> None:
    """Run a new experiment, or go on with that of a folder; write records and page."""
    from metastep.lab.bench.runner import ExperimentRun

    if resume is not None:
        o.refuse_beside_resume(context, "workers", "title", "storage", "engine", "address", "gpus_per_run", "methods")
        experiment = ExperimentRun.resume(
            resume, storage=options.storage, methods=() if options.methods is None else _names(options.methods)
        )
    else:
        assert name is not None
        plan = _plan(name, run, options, seeds)
        experiment = ExperimentRun(plan, o.new_folder(out, name), storage=options.storage)
    _execute(experiment, _engine(options, workers, context), title, json=json)


def _plan(name: str, run: o.RunOptions, options: ExperimentOptions, seeds: int | None) -> Plan:
    from metastep.lab.bench.experiments.table import experiment_named
    from metastep.lab.bench.plans import Plan

    experiment = experiment_named(name)
    scale = experiment.scale(options.scale.value)
    if options.budgets is not None:
        scale = replace(scale, budgets=_numbers(options.budgets))
    if seeds is not None:
        scale = replace(scale, seeds=seeds, factor_seeds=max(seeds, 1))
    methods = experiment.methods if options.methods is None else _names(options.methods)
    arenas = scale.arenas if options.tasks is None else _arenas(scale.arenas, _names(options.tasks))
    return Plan.of(f"{name}, {options.scale.value}", arenas, methods, scale, run.given())


def _arenas(arenas: tuple[Arena, ...], names: list[str]) -> list[Arena]:
    from metastep.lab.bench.names import unknown_name

    known = {arena.name: arena for arena in arenas}
    for name in names:
        if name not in known:
            raise unknown_name("tasks", name, known)
    return [known[name] for name in names]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in _names(text)}))
    except ValueError:
        raise ValueError(f"budgets must be whole numbers separated by commas, got {text!r}.") from None


def _engine(options: ExperimentOptions, workers: int, context: typer.Context) -> Engine:
    if options.engine is Where.LOCAL:
        if given := o.typed(context, ("address", "gpus_per_run")):
            raise ValueError(f"{given[0]} must be given with --engine ray only, got it with the local engine.")
        from metastep.lab.bench.engines.local import Local

        return Local(workers)
    from metastep.lab.bench.engines.ray_cluster import RayCluster

    if o.typed(context, ("workers",)):
        raise ValueError("workers must be given with the local engine only; Ray runs as many cells as have room.")
    return RayCluster(options.address, gpus_per_run=options.gpus_per_run)


def _execute(experiment: ExperimentRun, engine: Engine, title: str | None, *, json: bool) -> None:
    from metastep.lab.runtime.stop_signals import StopSignal

    folder, resume = experiment.folder, o.resume_command("compare", experiment.folder)
    with o.says_how_to_go_on(resume), comparison_bar(quiet=json) as watch, StopSignal(stop_notice) as stop:
        records = experiment.execute(engine, should_stop=stop, on_progress=watch)
    if records is None:
        raise o.Stopped(resume, stop.exit_code)
    show_report(folder, title, json=json)
