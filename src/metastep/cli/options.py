"""The options that several commands share, and how they become a run's configuration."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from metastep.bench.config import RunConfig

TaskName = Annotated[
    str | None, typer.Argument(help="A task, such as digits/mlp; see `metastep list`.", metavar="TASK")
]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of the run; default: the task's.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training data, instead of --steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples a step; default: the task's.")]
Lr = Annotated[float | None, typer.Option(help="Base rate; schedules that scale themselves do not read it.")]
OptimizerName = Annotated[str | None, typer.Option("--optimizer", help="Base optimizer; default: the task's.")]
Momentum = Annotated[float | None, typer.Option(help="Momentum of the optimizer.")]
WeightDecay = Annotated[float | None, typer.Option(help="Weight decay of the optimizer.")]
Warmup = Annotated[int, typer.Option("--warmup", help="Steps of linear warm-up.")]
TrainSize = Annotated[int | None, typer.Option(help="Train on so many examples only.")]
Noise = Annotated[str | None, typer.Option(help="Label noise of the training split: uniform or flip.")]
NoiseRate = Annotated[float, typer.Option(help="Share of wrong labels, in [0, 1].")]
Data = Annotated[str | None, typer.Option(help="Folder of the data; default: METASTEP_DATA, ./data, ../shared/data.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
LogEvery = Annotated[int | None, typer.Option(help="Steps between entries of the training curve.")]
EvalEvery = Annotated[int | None, typer.Option(help="Steps between evaluations on held-out data.")]
CheckpointEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: a new one under runs/.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with what lies in this folder, bit for bit.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class Stopped(Exception):
    """Ended before its end, by a signal; the text says how to go on."""

    def __init__(self, resume: str, code: int = 130) -> None:
        super().__init__(f"stopped after the current step; go on with: {resume}")
        self.code = code


def adjusted(
    config: RunConfig,
    *,
    steps: int | None,
    epochs: float | None,
    steps_per_epoch: int,
    optimizer: str | None,
    momentum: float | None,
    weight_decay: float | None,
    **values: Any,
) -> RunConfig:
    """Return the configuration with what the command line says; None leaves a value as it is."""
    from dataclasses import replace

    if steps is not None and epochs is not None:
        raise ValueError("steps and epochs must not both be given; they are two ways to say how long.")
    if epochs is not None:
        steps = round(epochs * steps_per_epoch)
    options = dict(config.optimizer_options) if optimizer in (None, config.optimizer) else {}
    if momentum is not None:
        options["momentum"] = momentum
    if weight_decay is not None:
        options["weight_decay"] = weight_decay
    given = {"total_steps": steps, "optimizer": optimizer, **values}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(config, optimizer_options=options, **changes)


def new_folder(what: str) -> Path:
    """A folder under runs/ that says what and when."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{what.replace('/', '-')}"


def require_task(task: str | None) -> str:
    """The task's name.

    Raises:
        ValueError: if there is none.
    """
    if task is None:
        raise ValueError("TASK must be given (or --resume FOLDER); see `metastep list`.")
    return task


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(value, allow_nan=False))
