"""``metastep meta-train --population``: train a schedule over a population of networks on a distribution of tasks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metastep.cli import options as o
from metastep.cli.display import note, say, steps_bar, stop_notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from metastep.lab.bench.population_run import PopulationProgress
    from metastep.lab.evolution import PopulationConfig
    from metastep.lab.evolution.jobs import Engine
    from metastep.schedules import SignalSchedule

_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class PopulationOptions:
    """What can be said of a population; None leaves it to the default."""

    population: Annotated[
        str | None,
        typer.Option(help="Train a signal schedule over a population, for this base: sgd or adamw. Takes no TASK."),
    ] = None
    survey_tasks: Annotated[int | None, typer.Option(help="Population: tasks surveyed first, to start from.")] = None
    meta_steps: Annotated[int | None, typer.Option(help="Population: steps of evolution after the survey.")] = None
    populations: Annotated[int | None, typer.Option(help="Population: tasks a step, at once with workers.")] = None
    workers: Annotated[int, typer.Option(help="Population: processes that share the tasks of a step.")] = 1
    scope: Annotated[str | None, typer.Option(help="Population: one rate for the network, or one for each layer.")] = (
        None
    )
    start_from: Annotated[str | None, typer.Option(help="Population: schedule to start from, without a survey.")] = None
    pairs: Annotated[int | None, typer.Option(help="Population: antithetic pairs of members.")] = None
    sigma: Annotated[float | None, typer.Option(help="Population: spread of the members' weights.")] = None
    longest: Annotated[int | None, typer.Option(help="Population: steps of the longest task in one go.")] = None

    def given(self) -> dict[str, Any]:
        """What was said, by the names of ``PopulationConfig``."""
        named = {
            "survey_tasks": self.survey_tasks,
            "meta_steps": self.meta_steps,
            "tasks": self.populations,
            "pairs": self.pairs,
            "sigma": self.sigma,
            "longest": self.longest,
        }
        return {name: value for name, value in named.items() if value is not None}


def population_config(
    options: PopulationOptions, *, seed: int, meta_lr: float | None, hidden: int | None, device: str
) -> PopulationConfig:
    """The settings of a new training.

    Raises:
        ValueError: for a base that there is not, or numbers out of range.
    """
    from metastep.lab.evolution.defaults import default_config
    from metastep.schedules.arguments import one_of

    given: dict[str, Any] = {**options.given(), "seed": seed, "device": device}
    if options.scope is not None:
        given["scope"] = one_of("scope", options.scope, ("network", "layer"))
    if options.start_from is not None:
        given["start"] = _to_start_from(options.start_from)
    if meta_lr is not None:
        given["meta_lr"] = meta_lr
    return default_config(str(options.population), hidden=hidden, **given)


def _to_start_from(name: str) -> SignalSchedule:
    from metastep.schedules import SignalSchedule, load_schedule

    found = load_schedule(name)
    if not isinstance(found, SignalSchedule):
        raise ValueError(f"start-from must be a signal schedule, {name} is of {type(found).__name__}.")
    return found


def is_population(folder: Path) -> bool:
    """Whether a folder holds the training of a population."""
    return (folder / "population.json").is_file()


def execute_population(
    config: PopulationConfig | None, folder: Path, engine: str, address: str | None, *, workers: int = 1, json: bool
) -> None:
    """Train in a new folder, or go on in one."""
    from metastep.lab.bench.population_run import PopulationRun
    from metastep.lab.runtime.stop_signals import StopSignal

    resume = o.resume_command("meta-train", folder) + ("" if engine == "local" else f" --engine {engine}")
    resume += f" --workers {workers}" if workers > 1 else ""
    with (
        _bar(folder.name, quiet=json) as watch,
        StopSignal(stop_notice) as stop,
        _engine(engine, address, workers) as evaluate,
    ):
        run = PopulationRun(config, folder, engine=evaluate, should_stop=stop, on_progress=watch, on_note=note)
        record = run.execute()
    if record is None:
        raise o.Stopped(resume, stop.exit_code)
    if json:
        o.print_json({**record, "folder": str(folder)})
        return
    say(f"{record['steps']} steps in {record['seconds']:.0f} s, {record['skipped']} skipped")
    say(f"rates on the reference task: {sparkline(record['curve'])}")
    say(f"learned schedule: {folder / 'schedule.safetensors'}")


@contextmanager
def _engine(name: str, address: str | None, workers: int) -> Iterator[Engine]:
    from metastep.lab.evolution.jobs import here

    if name == "ray":
        from metastep.lab.evolution.ray_engine import RayEngine

        with RayEngine(address) as engine:
            yield engine
        return
    if address is not None:
        raise ValueError(f"address must be left out for the engine local, got {address}; it is for --engine ray.")
    if workers == 1:
        yield here
        return
    from metastep.lab.evolution.process_engine import ProcessEngine

    with ProcessEngine(workers) as engine:
        yield engine


@contextmanager
def _bar(title: str, *, quiet: bool) -> Iterator[Callable[[PopulationProgress], None]]:
    with steps_bar(title, quiet=quiet) as update:

        def watch(progress: PopulationProgress) -> None:
            phase = "survey" if progress.surveying else "meta-loss"
            numbers = f"{phase} {progress.meta_loss:.3f}  rate {sparkline(progress.curve)}"
            update(progress.done, progress.total, numbers)

        yield watch


def sparkline(values: list[float] | tuple[float, ...]) -> str:
    """The shape of a curve in block characters, on a logarithmic scale of two decades below its peak.

    Example:
        >>> sparkline([0.01, 0.1, 1.0, 0.1])
        '▁▅█▅'
    """
    from math import log10

    top = max(values, default=0.0)
    if top <= 0:
        return ""
    heights = [1 + log10(max(value / top, 0.01)) / 2 for value in values]
    return "".join(_BLOCKS[round(height * (len(_BLOCKS) - 1))] for height in heights)
