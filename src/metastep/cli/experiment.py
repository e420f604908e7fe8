"""``metastep experiment``: many methods on many tasks, tuned alike, and the page that shows what came out."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metastep.cli import options as o
from metastep.cli.compare import execute_and_show, refuse_torchrun, refuse_unnamed_code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metastep.lab.bench.experiments import Workload
    from metastep.lab.bench.plan import ExperimentPlan
    from metastep.lab.runtime.executor import Executor


class Size(StrEnum):
    """How much of an experiment is run."""

    SMALL = "small"
    FULL = "full"


class Engine(StrEnum):
    """What runs the jobs."""

    LOCAL = "local"
    RAY = "ray"


def experiment(
    context: typer.Context,
    *,
    name: Annotated[
        str | None, typer.Argument(help="An experiment, such as field/small; see `metastep list experiments`.")
    ] = None,
    scale: Annotated[Size, typer.Option(help="How much is run: small for 2 cores, full for a GPU.")] = Size.SMALL,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="These methods, separated by commas; with --resume, further ones.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds 0, 1, ..., of rates that are off, too; default: the experiment's.")
    ] = None,
    budgets: Annotated[str | None, typer.Option(help="Numbers of trials, such as 1,8; 1 is the defaults.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL of the trials; default: in the folder.")
    ] = None,
    data_dir: o.DataFolder = None,
    device: o.Device = "cpu",
    set: o.Settings = None,
    workers: o.Workers = 1,
    engine: Annotated[Engine, typer.Option(help="Where runs are made: here, or on a Ray cluster.")] = Engine.LOCAL,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; default: RAY_ADDRESS, else a new one on this machine.")
    ] = None,
    gpus_per_run: Annotated[
        float | None, typer.Option(help="With Ray: share of a GPU that a run is given, such as 0.25.")
    ] = None,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Run an experiment: many methods meet on many tasks, with equal budgets of trials; write a self-contained page.

    Finished runs are kept: --resume resumes an experiment that was stopped or killed.
    """
    from metastep.lab.bench.runner import ExperimentRun

    refuse_torchrun("experiment")
    if resume is not None:
        allowed = ("workers", "storage", "engine", "address", "gpus_per_run", "methods")
        o.refuse_beside_resume(context, *allowed)
        running = ExperimentRun.resume(resume, storage=storage, methods=_names(methods or ""))
        refuse_unnamed_code(running)
    else:
        if name is None:
            raise ValueError("NAME must be given (or --resume FOLDER); see `metastep list experiments`.")
        given = {"device": device, **({} if data_dir is None else {"data_dir": data_dir}), **o.settings(set)}
        plan = _plan(name, scale, tasks, methods, seeds, budgets, given)
        running = ExperimentRun(plan, o.new_folder(out, name), storage=storage)
    with _executor(context, engine, address, gpus_per_run, workers) as executor:
        execute_and_show(running, executor, "experiment", json=json)


def _plan(
    name: str,
    size: Size,
    tasks: str | None,
    methods: str | None,
    seeds: int | None,
    budgets: str | None,
    given: Mapping[str, Any],
) -> ExperimentPlan:
    from metastep.lab.bench.experiments import experiment_named
    from metastep.lab.bench.plan import ExperimentPlan

    chosen = experiment_named(name)
    scale = chosen.scale(size.value)
    if budgets is not None:
        scale = replace(scale, budgets=_numbers(budgets))
    if seeds is not None:
        scale = replace(scale, seeds=seeds, factor_seeds=max(seeds, 1))
    if refused := [setting for setting in ("optimizer", "momentum", "weight_decay") if setting in given]:
        raise ValueError(f"{refused[0]} must be left to the methods of an experiment, got it in --set; use --methods.")
    return ExperimentPlan.of(
        f"{name}, {size.value}",
        scale.workloads if tasks is None else _workloads(scale.workloads, _names(tasks)),
        chosen.methods if methods is None else _names(methods),
        scale,
        given,
    )


def _workloads(workloads: tuple[Workload, ...], names: list[str]) -> list[Workload]:
    from metastep.lab.bench.names import unknown_name

    known = {workload.name: workload for workload in workloads}
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


def _executor(
    context: typer.Context, engine: Engine, address: str | None, gpus: float | None, workers: int
) -> Executor:
    from metastep.lab.runtime.executor import LocalExecutor, RayExecutor

    if engine is Engine.LOCAL:
        if given := o.typed(context, ("address", "gpus_per_run")):
            raise ValueError(f"{given[0]} must be given with --engine ray only, got it with the local engine.")
        return LocalExecutor(workers)
    return RayExecutor(address, workers=workers if o.typed(context, ("workers",)) else None, gpus=gpus)
