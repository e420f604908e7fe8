"""``metastep inspect``: what a schedule file holds, and what rates it would set."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from metastep.cli import options as o
from metastep.cli.display import say, show, sparkline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.lab.bench.table.scheduled import Base
    from metastep.lab.tasks import Task
    from metastep.schedules import Schedule
    from metastep.schedules.base import LearnedSchedule

_BARS = "▁▂▃▄▅▆▇█"
#: What a schedule that reads the optimizer is run on: small, built in (scikit-learn has the data), done in a second.
_TASK = "digits/mlp"
_STARTS = (0.01, 1.0, 10.0)
_WIDTH = 30


def inspect(
    file: Annotated[str, typer.Argument(help="A schedule: a file of ours, a published .pth, or a name we ship.")],
    steps: Annotated[int, typer.Option(help="Steps to show.")] = 300,
    num_classes: Annotated[int, typer.Option(help="Classes of the task that the losses stand for.")] = 10,
    gate_layout: Annotated[
        str | None, typer.Option(help="For published .pth files: ifgo (default) or ifog_shifted.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw; default: FILE's name with -rates.png, here.")] = None,
    json: o.Json = False,
) -> None:
    """Show a schedule's configuration and the rate it would set for a falling, a rising and a flat loss.

    One that reads its optimizer is shown in three short runs on digits/mlp, from 0.01, 1 and 10 times the usual rate.
    """
    from metastep.schedules import load_schedule
    from metastep.schedules.base import LearnedSchedule
    from metastep.schedules.files import read_schedule_file

    if steps < 2:
        raise ValueError(f"steps must be >= 2, got {steps}.")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}.")
    schedule = load_schedule(file, gate_layout).with_total_steps(steps)  # type: ignore[arg-type]
    reader = schedule if isinstance(schedule, LearnedSchedule) and schedule.monitors is not None else None
    found = _real_runs(reader, steps) if reader else _answers(schedule, steps, num_classes)
    facts = {
        "class": type(schedule).__name__,
        "weights": sum(weight.numel() for weight in schedule.parameters()),
        "bytes": len(read_schedule_file(file)),
        "config": schedule.config(),
    }
    if json:
        o.print_json({**facts, **found})
        return
    show(_facts_table(file, facts))
    if reader:
        show(_runs_table(found))
        say(_runs_note(found, reader))
    else:
        show(_rates_table(found["rates"]))
        _say_settled(found["settled"], num_classes)
    from metastep.lab.report import write_rate_picture

    target = plot or Path(f"{Path(file).stem}-rates.png")
    say(f"plot: {write_rate_picture(found['rates'], target, title=f'Learning rate of {Path(file).name}')}")


def _answers(schedule: Schedule, steps: int, num_classes: int) -> dict[str, Any]:
    """The rates for made-up losses, and where each snapshot settles."""
    start = math.log(num_classes)
    losses = {
        "falling": [start * (1 - 0.95 * step / (steps - 1)) for step in range(steps)],
        "rising": [start * (0.05 + 0.95 * step / (steps - 1)) for step in range(steps)],
        "flat": [start / 2] * steps,
    }
    rates = {name: _rates(schedule, values, num_classes, start) for name, values in losses.items()}
    return {"rates": rates, "settled": _settled(schedule, num_classes)}


def _rates(schedule: Schedule, losses: Sequence[float], num_classes: int, initial: float) -> list[float]:
    """The rates for a sequence of losses; those of a relative schedule are factors of the base rate."""
    from metastep.schedules.base import LearnedSchedule

    rule = schedule.scale if isinstance(schedule, LearnedSchedule) and not schedule.relative else None
    scale = rule.gamma(initial, num_classes) if rule else 1.0
    state, rates = schedule.init_state(), []
    for loss in losses:
        alpha, state = schedule.query(float(rule.normalize(loss, num_classes)) if rule else loss, state)
        rates.append(scale * alpha)
    return rates


def _settled(schedule: Schedule, num_classes: int, losses: int = 12) -> list[dict[str, float]]:
    """Between which outputs each snapshot of a learned schedule settles, over constant losses from 0 to ln C."""
    from metastep.schedules.base import LearnedSchedule
    from metastep.schedules.phased import Phased, settled_output

    if schedule.relative or not isinstance(schedule, LearnedSchedule):
        return []
    snapshots: list[Any] = list(schedule.schedules) if isinstance(schedule, Phased) else [schedule]
    grid = [math.log(num_classes) * place / (losses - 1) for place in range(losses)]
    found = []
    for number, snapshot in enumerate(snapshots, start=1):
        outputs = [settled_output(snapshot, float(schedule.scale.normalize(x, num_classes))) for x in grid]
        low, high = min(outputs), max(outputs)
        reaction = (high - low) / (sum(outputs) / losses)
        found.append({"snapshot": number, "lowest": low, "highest": high, "reaction": reaction})
    return found


def _say_settled(settled: Sequence[dict[str, float]], num_classes: int) -> None:
    highest = math.log(num_classes)
    for phase in settled:
        say(
            f"Fed any constant loss from 0 to {highest:.2f}, snapshot {phase['snapshot']} settles between "
            f"{phase['lowest']:.4f} and {phase['highest']:.4f}: it reacts by {phase['reaction']:.1%}."
        )


def _real_runs(schedule: LearnedSchedule, steps: int) -> dict[str, Any]:
    """Train a small network from a hundredth, one and ten times its optimizer's usual rate, and return what was set.

    Args:
        schedule: one that reads the optimizer. With a rate for each parameter, their geometric mean is returned.
        steps: of each run.

    Returns:
        ``ran``: the task, the base, the steps, the seed; ``rates``: by run, one a step, 0 for a skipped one;
        ``runs``: by run, the initial rate, the steps skipped, and the loss on outer_valid at the end.
    """
    from metastep.lab.tasks import load_task

    name, base = _base(schedule)
    task = load_task(_TASK)
    rates: dict[str, list[float]] = {}
    runs: dict[str, dict[str, Any]] = {}
    for factor in _STARTS:
        label = f"from {factor * base.lr:.4g}"
        rates[label], runs[label] = _run(task, base, schedule, factor * base.lr, steps)
    return {"ran": {"task": _TASK, "optimizer": name, "steps": steps, "seed": 0}, "rates": rates, "runs": runs}


def _base(schedule: LearnedSchedule) -> tuple[str, Base]:
    """The optimizer that it was trained for, the last named; SGD with momentum where that is unknown or not ours."""
    from metastep.lab.bench.table.scheduled import BASES

    named = (getattr(schedule, "trained_for", None) or "").split(", ")
    name = next((base for base in reversed(named) if base in BASES), "sgd-momentum")
    return name, BASES[name]


def _run(
    task: Task, base: Base, schedule: LearnedSchedule, start: float, steps: int
) -> tuple[list[float], dict[str, Any]]:
    import torch

    from metastep.lab.bench.optimizers import make_optimizer
    from metastep.lab.bench.training import Trainer
    from metastep.schedules import LearnedLR

    torch.manual_seed(0)
    model = task.make_model().train()
    optimizer = make_optimizer(base.optimizer, model, start, base.options)
    lr = LearnedLR(optimizer, schedule, total_steps=steps)
    batches = task.batches("train", seed=0)
    trainer = Trainer(model=model, optimizer=optimizer, lr=lr, loss=task.loss, batches=batches)
    rates = []
    for _ in range(steps):
        trainer.advance()
        every = lr.get_last_lr()
        rates.append(geometric_mean(every) if min(every) > 0 else 0.0)
    loss = task.evaluate(model, "outer_valid")["loss"]
    return rates, {"initial": start, "skipped": lr.skipped_steps, "outer_valid": loss if math.isfinite(loss) else None}


def _runs_table(found: dict[str, Any]) -> Table:
    """The rates of the first step, the second (the first whose size is calibrated), the middle and the last."""
    table = Table(title="rates", title_justify="left", box=None, pad_edge=False)
    for heading in ("run", "first", "second", "middle", "last", "skipped", "loss", "course"):
        table.add_column(heading, justify="left" if heading in ("run", "course") else "right")
    for name, rates in found["rates"].items():
        run = found["runs"][name]
        points = [rates[0], rates[1], rates[len(rates) // 2], rates[-1]]
        loss = "diverged" if run["outer_valid"] is None else f"{run['outer_valid']:.3f}"
        calibrated = rates[1:]
        picked = [calibrated[round(place * (len(calibrated) - 1) / (_WIDTH - 1))] for place in range(_WIDTH)]
        shown = (f"{value:.3g}" for value in points)
        table.add_row(name, *shown, str(run["skipped"]), loss, sparkline(picked))
    return table


def _runs_note(found: dict[str, Any], schedule: LearnedSchedule) -> str:
    """What was run, in a sentence or two."""
    ran = found["ran"]
    of = ", the geometric mean over parameters" if schedule.monitors == "layer" else ""
    return (
        f"These rates{of} were set in three real runs: {ran['steps']} steps on {ran['task']} with {ran['optimizer']}, "
        f"seed {ran['seed']}, from 0.01, 1 and 10 times its usual rate; loss is on outer_valid at the end, course on a "
        "logarithmic scale from the second step on. On other tasks the rates are others."
    )


def _facts_table(file: str, facts: dict[str, Any]) -> Table:
    table = Table(title=escape(file), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_row("class", facts["class"])
    table.add_row("weights", f"{facts['weights']:,} ({facts['bytes'] / 1024:.0f} KiB)")
    config = facts["config"]
    if "schedules" in config:
        table.add_row("phases", str(len(config["schedules"])))
        config = {"of each": config["schedules"][0]["class"], **config["schedules"][0]["config"]}
    for name, value in config.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, escape(shown))
    return table


def _rates_table(rates: dict[str, list[float]]) -> Table:
    table = Table(title="rates", title_justify="left", box=None, pad_edge=False)
    for heading in ("loss", "first", "middle", "last", "course"):
        table.add_column(heading, justify="left" if heading in ("loss", "course") else "right")
    high = max(max(values) for values in rates.values()) or 1.0
    for name, values in rates.items():
        points = [values[0], values[len(values) // 2], values[-1]]
        table.add_row(name, *(f"{value:.4g}" for value in points), _course(values, high))
    return table


def _course(values: Sequence[float], high: float, width: int = 40) -> str:
    picked = [values[round(place * (len(values) - 1) / (width - 1))] for place in range(width)]
    return "".join(_BARS[min(int(value / high * len(_BARS)), len(_BARS) - 1)] for value in picked)
