"""``metastep evolve``: train a signal schedule by evolution, on a distribution of small tasks."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path  # typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metastep.cli import options as o
from metastep.cli.display import note, say, sparkline, steps_bar, stop_notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from metastep.lab.evolution import EvolutionConfig
    from metastep.lab.evolution.run import EvolutionProgress
    from metastep.lab.runtime.executor import Executor
    from metastep.schedules.signal_schedule import SignalSchedule

_EXECUTORS = ("local", "ray")


def evolve(
    context: typer.Context,
    *,
    base: Annotated[str | None, typer.Argument(help="The optimizer that it is for: sgd or adamw.")] = None,
    warm_start_tasks: Annotated[int | None, typer.Option(help="Tasks whose rates are swept first; 0: none.")] = None,
    meta_steps: Annotated[int | None, typer.Option(help="Steps of evolution after the warm start.")] = None,
    populations: Annotated[int | None, typer.Option(help="Populations a step, each on a task of its own.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Antithetic pairs of weights in a population.")] = None,
    meta_lr: Annotated[float | None, typer.Option(help="Rate of the meta-optimizer, Adam.")] = None,
    longest: Annotated[int | None, typer.Option(help="Steps of the longest task that is trained in one go.")] = None,
    scope: Annotated[str | None, typer.Option(help="One rate for the network, or one for each layer.")] = None,
    start_from: Annotated[str | None, typer.Option(help="Schedule to start from, without a warm start.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, tasks and perturbations.")] = 0,
    device: Annotated[str, typer.Option(help="Where networks train: cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[int | None, typer.Option(help="Populations that train at once; default: 1, or all of Ray.")] = (
        None
    ),
    executor: Annotated[str, typer.Option(help="Where populations train: local processes, or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one started on this machine.")] = None,
    out: o.Out = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Train a signal schedule by evolution, on a distribution of small tasks of its own.

    First a warm start: on some tasks the rates are swept, and a network is fitted that says where a better rate lies.
    Then evolution strategies move its weights. The folder's schedule.safetensors holds the schedule.
    """
    where = _executor(executor, address, workers)
    how = ("" if executor == "local" else f" --executor {executor}") + (f" --workers {workers}" if workers else "")
    if resume is not None:
        o.refuse_beside_resume(context, "executor", "address", "workers")
        execute_evolution(None, resume, where, how, json=json)
        return
    if base is None:
        raise ValueError("BASE must be given (or --resume FOLDER): sgd or adamw.")
    given = {
        "warm_start_tasks": warm_start_tasks,
        "meta_steps": meta_steps,
        "populations": populations,
        "pairs": pairs,
        "meta_lr": meta_lr,
        "longest": longest,
    }
    given = {name: value for name, value in given.items() if value is not None}
    config = evolution_config(base, scope, start_from, **given, seed=seed, device=device)
    execute_evolution(config, o.new_folder(out, f"evolve-{base}"), where, how, json=json)


def evolution_config(base: str, scope: str | None, start_from: str | None, **given: Any) -> EvolutionConfig:
    """The settings of a new evolution.

    Raises:
        ValueError: for a base that there is not, or numbers out of range.
    """
    from metastep.lab.evolution import default_config
    from metastep.schedules.base import one_of

    if scope is not None:
        given["scope"] = one_of("scope", scope, ("network", "layer"))
    if start_from is not None:
        given["start"] = _to_start_from(start_from)
    return default_config(base, **given)


def _to_start_from(name: str) -> SignalSchedule:
    from metastep.schedules import load_schedule
    from metastep.schedules.signal_schedule import SignalSchedule

    found = load_schedule(name)
    if not isinstance(found, SignalSchedule):
        raise ValueError(f"start-from must be a signal schedule, {name} is of {type(found).__name__}.")
    return found


def execute_evolution(
    config: EvolutionConfig | None, folder: Path, executor: Executor | None = None, how: str = "", *, json: bool
) -> None:
    """Train in a new folder, or resume in one.

    Args:
        config: None resumes what the folder holds.
        folder: where.
        executor: where populations train; None: in this process.
        how: the options that make such an executor, for the command that resumes.
        json: whether to print the record alone.
    """
    from metastep.lab.evolution.run import EvolutionRun
    from metastep.lab.runtime.executor import LocalExecutor
    from metastep.lab.runtime.stop_signals import StopSignal

    with (
        _bar(folder.name, quiet=json) as watch,
        StopSignal(stop_notice) as stop,
        executor or LocalExecutor() as where,
    ):
        run = EvolutionRun(config, folder, executor=where, should_stop=stop, on_progress=watch, on_note=note)
        record = run.execute()
    if record is None:
        raise o.Stopped(o.resume_command("evolve", folder) + how, stop.exit_code)
    if json:
        o.print_json({**record, "folder": str(folder)})
        return
    say(f"{record['steps']} steps in {record['seconds']:.0f} s, {record['skipped']} skipped")
    say(f"rates on the reference task: {sparkline(record['curve'])}")
    say(f"learned schedule: {folder / 'schedule.safetensors'}")


def _executor(name: str, address: str | None, workers: int | None) -> Executor:
    from metastep.lab.runtime.executor import LocalExecutor, RayExecutor

    if name not in _EXECUTORS:
        raise ValueError(f"executor must be {' or '.join(_EXECUTORS)}, got {name!r}.")
    if name == "ray":
        return RayExecutor(address, workers=workers)
    if address is not None:
        raise ValueError(f"address must be left out for the executor local, got {address}; it is for --executor ray.")
    return LocalExecutor(1 if workers is None else workers)


@contextmanager
def _bar(title: str, *, quiet: bool) -> Iterator[Callable[[EvolutionProgress], None]]:
    with steps_bar(title, quiet=quiet) as update:

        def watch(progress: EvolutionProgress) -> None:
            phase = "warm start" if progress.warming_start else "meta-loss"
            update(progress.done, progress.total, f"{phase} {progress.meta_loss:.3f}  rate {sparkline(progress.curve)}")

        yield watch


def refuse_old_spelling(arguments: Sequence[str]) -> None:
    """Say what became of ``metastep meta-train --population BASE``.

    Raises:
        ValueError: if that was typed.
    """
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--population" and arguments[0] == "meta-train":
            base = value or next(iter(arguments[position + 1 : position + 2]), "BASE")
            raise ValueError(
                f"meta-train --population {base} is now a command of its own: metastep evolve {base}; "
                "--survey-tasks is --warm-start-tasks there, --engine is --executor."
            )
